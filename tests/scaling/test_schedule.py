"""The schedule against its closed form."""

import dataclasses
import math

import pytest

from scaling.config import FINETUNE, PRETRAIN, peak_lr
from scaling.schedule import learning_rate


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
