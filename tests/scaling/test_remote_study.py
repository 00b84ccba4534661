"""A study whose shards lie elsewhere: planned, launched and completed as from a folder."""

from pathlib import Path

import pytest

from scaling import rundir
from tests.scaling.test_quickstart import armscale, tiny_study

AXES = {"strategy": ["ar"], "encoder": ["mamba"], "size": ["pico"], "seed": [0]}


@pytest.mark.slow
def test_remote_shards_give_the_runs_of_the_folder(tmp_path: Path, shards: Path) -> None:
    study = tiny_study(tmp_path, shards, axes=AXES, rules=[])
    assert armscale("study", "launch", study, cwd=tmp_path).returncode == 0
    ours = rundir.find_runs(tmp_path / "runs" / "tiny")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    far = tiny_study(elsewhere, shards, axes=AXES, rules=[], data={"shards": f"pipe:cat {shards}"})
    launched = armscale("study", "launch", far, cwd=elsewhere)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    theirs = rundir.find_runs(elsewhere / "runs" / "tiny")
    for here, there in zip(sorted(ours), sorted(theirs), strict=True):
        assert here.name == there.name
        one, other = (rundir.read_json(run / rundir.SUMMARY) for run in (here, there))
        assert one is not None
        assert other is not None
        assert (one["final_loss"], one["top1"]) == (other["final_loss"], other["top1"])
