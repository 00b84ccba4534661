"""A decay that leaves its trunk is, to the bit, the end of one run of its whole length."""

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import load_file

from scaling import rundir
from scaling.checkpoint import committed, step_of
from scaling.errors import UserError
from scaling.start import branching_point
from scaling.study.chains import decay_of, trunk_of
from tests.scaling.runs import BATCH, carry_out, curve, small_config, write_run


@pytest.mark.slow
def test_trunk_and_decay_are_one_run(tmp_path: Path, shards: Path) -> None:
    """Warm-up of 2 steps; decays leave after 4 and 8; the first, of 4 steps, against a run of 8 steps alone."""
    stage = small_config(
        shards, images=None, schedule="wsd", warmup=0.25, decay=0.5, branches=(4 * BATCH, 8 * BATCH),
        checkpoint_every=100, keep_checkpoints=1,
    )  # fmt: skip
    trunk = write_run(dataclasses.replace(stage, train=trunk_of(stage.train)), tmp_path)
    trunk_curve = curve(carry_out(trunk))
    assert [step_of(path) for path in committed(trunk)] == [4, 8]  # only branches, though one is kept

    decay = dataclasses.replace(stage, parent=trunk.name, train=decay_of(stage.train, 4 * BATCH))
    branch = write_run(decay, tmp_path)
    branch_curve = curve(carry_out(branch))
    whole = dataclasses.replace(stage.train, branches=(), images=8 * BATCH)
    alone = write_run(dataclasses.replace(stage, train=whole), tmp_path)
    assert trunk_curve[:4] + branch_curve == curve(carry_out(alone))
    ours, theirs = (load_file(run / "weights.safetensors") for run in (branch, alone))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)

    summaries = [rundir.read_json(run / rundir.SUMMARY) for run in (trunk, branch, alone)]
    of_trunk, of_branch, of_alone = (summary or {} for summary in summaries)
    assert [summary["finished_schedule"] for summary in (of_trunk, of_branch, of_alone)] == [False, True, True]
    assert (of_branch["images_seen"], of_branch["total_images_seen"]) == (4 * BATCH, 8 * BATCH)
    assert of_branch["total_train_flops"] == of_alone["total_train_flops"]
    assert of_branch["pretrain_loss"] == of_alone["pretrain_loss"]


def test_a_trunk_without_that_checkpoint_is_named(tmp_path: Path, shards: Path) -> None:
    stage = small_config(shards, images=None, schedule="wsd", branches=(4 * BATCH,))
    decay = dataclasses.replace(stage, parent="the-trunk", train=decay_of(stage.train, 4 * BATCH))
    with pytest.raises(UserError, match="checkpoints of the-trunk"):
        branching_point(decay, tmp_path / "branch")
