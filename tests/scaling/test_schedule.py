"""The schedule against its closed form."""

import dataclasses
import math

import pytest

from scaling.config import FINETUNE, PRETRAIN, peak_lr
from scaling.schedule import learning_rate
from scaling.study.chains import decay_of, trunk_of


def test_paper_pretraining_in_fractional_epochs() -> None:
    """lr(epoch) of the official script: epoch / 40 below 40, then 0.5 (1 + cos(pi (epoch - 40) / 1560))."""
    train = dataclasses.replace(PRETRAIN, base_lr=1.5e-4, global_batch=2048, warmup=40 / 1600)
    steps_per_epoch = 625
    for step in (0, 1, 624, 24_999, 25_000, 31_415, 600_000, 999_999):
        epoch = step / steps_per_epoch
        expected = 1.2e-3 * (epoch / 40 if epoch < 40 else 0.5 * (1 + math.cos(math.pi * (epoch - 40) / 1560)))
        assert learning_rate(train, step, 1600 * steps_per_epoch) == pytest.approx(expected, rel=1e-12)


def test_floor_and_peak() -> None:
    train = dataclasses.replace(FINETUNE, base_lr=5e-4, global_batch=1024)
    assert peak_lr(train) == 2e-3
    assert learning_rate(train, 50, 1000) == pytest.approx(2e-3)
    assert learning_rate(train, 1000, 1000) == pytest.approx(1e-6)


def test_no_warmup_starts_at_the_peak() -> None:
    train = dataclasses.replace(PRETRAIN, lr=1e-3, warmup=0.0)
    assert learning_rate(train, 0, 10) == 1e-3


def test_wsd_is_warm_up_constant_and_one_minus_root() -> None:
    """Of 100 steps 10 warm up and the last 20 fall from 1e-3 to 1e-5 as 1 - sqrt (Haegele et al. 2024)."""
    train = dataclasses.replace(PRETRAIN, lr=1e-3, min_lr=1e-5, warmup=0.1, schedule="wsd", decay=0.2)
    rates = [learning_rate(train, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([1e-4 * step for step in range(10)])
    assert rates[10:81] == [1e-3] * 71
    assert rates[80:] == pytest.approx([1e-5 + 99e-5 * (1 - math.sqrt(done / 20)) for done in range(21)])


def test_a_trunk_has_no_decay_and_its_branches_are_runs_of_their_length() -> None:
    """Before the branch every rate is the trunk's; after it that of one `wsd` run of the branch's whole length."""
    stage = dataclasses.replace(
        PRETRAIN, lr=1e-3, warmup=0.125, schedule="wsd", decay=0.2, global_batch=16, branches=(16 * 40, 16 * 80)
    )
    trunk = trunk_of(stage)
    assert (trunk.images, trunk.branches) == (16 * 80, (16 * 40, 16 * 80))
    assert learning_rate(trunk, 79, 80) == 1e-3
    for left, length in ((40, 50), (80, 100)):
        branch = decay_of(stage, 16 * left)
        assert (branch.images, branch.branched_at, branch.branches) == (16 * length, 16 * left, ())
        alone = dataclasses.replace(stage, images=16 * length, branches=(), warmup=10 / length)
        for step in range(length):
            rate = learning_rate(branch, step, length)
            assert rate == pytest.approx(learning_rate(alone, step, length), rel=1e-12)
            if step < left:
                assert rate == pytest.approx(learning_rate(trunk, step, 80), rel=1e-12)
