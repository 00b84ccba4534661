"""What a launch prints of its runs, whatever these have said, and how far it says that they are."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from scaling import rundir
from scaling.attempt import write_status
from scaling.cli.status import Status, runs_table
from scaling.study.folders import write_folders
from scaling.study.plan import plan_study
from scaling.study.progress import Progress
from scaling.study.remaining import remaining
from scaling.study.table import load_study
from tests.scaling.test_quickstart import tiny_study

ERROR = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] [red]Connection closed[/] \\\\"


@pytest.mark.parametrize("state", [state for state in rundir.STATES if state != "completed"])
def test_every_state_and_error_is_printed_as_it_stands(
    tmp_path: Path, shards: Path, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_study(load_study(tiny_study(tmp_path, shards)), tmp_path)
    (name, *_) = (row.config.run for row in plan.rows)
    write_status(tmp_path / name, state, error=ERROR)
    Progress(plan, tmp_path).finished(name, state)
    assert capsys.readouterr().out.rstrip("\n") == f"{state} {name} {ERROR}"


def test_a_decay_stands_where_its_own_images_do(tmp_path: Path, shards: Path) -> None:
    """80 images after the trunk's 320; at the second of its five steps its metrics count 352. 48 are left, at 16/s."""
    given = yaml.safe_load(tiny_study(tmp_path, shards).read_text())
    del given["defaults"]["pretrain"]["images"]
    given["defaults"]["pretrain"] |= {"global_batch": 16, "schedule": "wsd", "decay": 0.2, "branches": [320]}
    axes = {"strategy": ["ar"], "size": ["pico"], "seed": [0]}
    plan = plan_study(load_study(tiny_study(tmp_path, shards, axes=axes, defaults=given["defaults"])), tmp_path)
    write_folders(plan, tmp_path)
    trunk, decay = (replace(row, state="running") for row in plan.rows[:2])
    assert (trunk.cost.images, decay.cost.images) == (320, 80)
    last = {"images_seen": 352, "images_per_second": 16.0, "loss": 1.0}
    study = tmp_path / plan.study.name
    (study / decay.config.run / rundir.METRICS).write_text(json.dumps(last) + "\n")

    alone = replace(plan, rows=[decay])
    left = remaining(alone, tmp_path)
    assert left.study == left.runs[decay.config.run] == 3.0
    console = Console(width=220)
    with console.capture() as told:
        console.print(runs_table(Status(alone), tmp_path, left))
    assert " 32 / 80 " in told.get()
    progress = Progress(alone, study)
    progress.started(decay)
    progress.refresh([decay.config.run])
    (bar,) = (task for task in progress.bars.tasks if task.description == decay.config.run)
    assert (bar.completed, bar.total) == (32, 80)
