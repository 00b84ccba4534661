"""A tuned study with probes on the real cluster: trials first, then final runs with the values chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scaling import rundir
from slurm.cluster.layout import Layout
from tests.slurm import studies

GRID = [1e-4, 2e-3]


def tuned_study(folder: Path, shards: Path) -> Path:
    """One pretraining with its probe, two trials of each of two arms, every run on two ranks."""
    study = studies.write_study(folder, shards, nodes=1, seeds=1)
    given = yaml.safe_load(study.read_text())
    given["axes"]["strategy"] = ["ar", "scratch"]
    given["defaults"]["probe"] = [{"kind": "linear_probe"}]
    given["tune"] = {"grid": {"finetune.lr": GRID}, "held_out": 0.25}
    study.write_text(yaml.safe_dump(given))
    return study


@pytest.mark.slurm
@pytest.mark.slow
def test_trials_and_then_the_chosen(cluster: Layout, tmp_path: Path, shards: Path) -> None:
    study = tuned_study(tmp_path, shards)
    told = studies.launch(study)
    assert "7 of 7 runs submitted; 2 arms wait for their trials" in told
    studies.wait_until_completed(study)
    told = studies.launch(study, "--wait")
    assert "2 of 9 runs submitted" in told, told
    assert "9 completed of 9 runs" in told, told

    folder = tmp_path / "runs" / "tiny"
    record = rundir.read_json(folder / rundir.TUNING)
    assert record is not None
    summaries = [rundir.read_json(run / rundir.SUMMARY) or {} for run in studies.run_folders(study)]
    assert sorted(summary["strategy"] for summary in summaries if summary["stage"] == "probe") == ["ar", "scratch"]
    for arm in record["arms"]:
        best = max(arm["trials"], key=lambda trial: trial["top1"])
        configs = [yaml.safe_load((run / rundir.CONFIG).read_text()) for run in studies.run_folders(study)]
        (final,) = [
            config
            for config in configs
            if (config["stage"], config["strategy"], config["data"]["held_out"])
            == ("finetune", arm["arm"]["strategy"], 0.0)
        ]
        assert arm["chosen"] == best["values"] == {"finetune.lr": final["train"]["lr"]}
