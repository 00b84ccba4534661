"""The folders of a study hold the runs that their names say, and nothing else is taken for them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from analysis.collect import update_tables
from analysis.sections import unfinished
from data.index import Index, read_index
from data.remote import Location
from scaling import files, rundir
from scaling.attempt import mark
from scaling.errors import UserError
from scaling.study import folders
from scaling.study.folders import write_folders
from scaling.study.plan import Plan, plan_study, require_data
from scaling.study.table import load_study
from tests.scaling.test_quickstart import armscale, tiny_study


@pytest.fixture
def plan(tmp_path: Path, shards: Path) -> Plan:
    axes = {"strategy": ["scratch"], "encoder": ["mamba"], "size": ["pico"], "seed": [0, 1]}
    return plan_study(load_study(tiny_study(tmp_path, shards, axes=axes, rules=[])), tmp_path / "runs")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("held_out", [False, True])
def test_images_that_evaluation_could_not_take_as_they_are_are_refused_before_training(
    plan: Plan, *, held_out: bool
) -> None:
    require_data(plan)
    config = plan.rows[0].config
    assert config.train.eval_resize == "none"
    data, train = replace(config.data, held_out=0.05 if held_out else 0.0), replace(config.train, image_size=48)
    wanted = r"finetune.eval_resize: 'none' .*those of the split \w+ are 32 px wide, 32 px high.*48 x 48"
    with pytest.raises(UserError, match=wanted):
        require_data(replace(plan, rows=[replace(plan.rows[0], config=replace(config, data=data, train=train))]))


def test_an_index_is_read_once_for_all_runs(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counting(folder: Location) -> Index:
        read.append(Path(folder).name)
        return read_index(folder)

    monkeypatch.setattr("scaling.requirements.read_index", counting)
    labelled = next(row for row in plan.rows if row.config.labelled)
    require_data(replace(plan, rows=[*plan.rows, labelled, labelled]))
    assert sorted(read) == ["train", "val"]


@pytest.mark.parametrize("completed", [True, False])
def test_a_folder_with_another_config_is_refused(plan: Plan, tmp_path: Path, *, completed: bool) -> None:
    """Neither skipped where it is completed nor written over where it is not."""
    study = write_folders(plan, tmp_path / "runs")
    run = study / plan.rows[0].config.run
    if completed:
        files.write_json(run / rundir.SUMMARY, {})
    change(run / rundir.CONFIG, f"lr: {plan.rows[0].config.train.lr}\n", "lr: 0.5\n")
    (study / rundir.STUDY).unlink()
    launched = armscale("study", "launch", tmp_path / "tiny.yaml", cwd=tmp_path)
    assert launched.returncode == 2, launched.stdout + launched.stderr
    for told in ("train.lr: 0.5", f"Valid: {plan.rows[0].config.train.lr}", str(run.relative_to(tmp_path))):
        assert told in " ".join(launched.stderr.split())
    assert "lr: 0.5\n" in (run / rundir.CONFIG).read_text()
    assert not (study / rundir.STUDY).exists()


def test_what_changes_no_result_may_differ(plan: Plan, tmp_path: Path) -> None:
    """So may the spelling of a number, and a field that an older version did not have."""
    study = write_folders(plan, tmp_path)
    path = study / plan.rows[0].config.run / rundir.CONFIG
    change(path, "log_every: 1\n", "log_every: 7\n")
    change(path, "engine: single\n", "engine: ddp\n")
    change(path, f"lr: {plan.rows[0].config.train.lr}\n", f"lr: {plan.rows[0].config.train.lr * 1000:g}e-3\n")
    change(path, "  pooling: mean\n", "")
    write_folders(plan, tmp_path)


def test_what_an_earlier_version_of_the_file_had_begun_is_not_missed(plan: Plan, tmp_path: Path) -> None:
    """Nor by tables that were collected in between; asked for again, it is. What was completed stays."""
    failed, completed = (row.config.run for row in plan.rows)
    study = write_folders(plan, tmp_path)
    mark(study / failed, "failed", error="no memory")
    files.write_json(study / completed / rundir.SUMMARY, {"top1": 0.5})
    assert unfinished(update_tables(study, tmp_path / "tables")) == 1
    other = replace(plan.study, rules=[{"when": {}, "set": {"finetune.lr": 0.5}}])
    write_folders(plan_study(other, tmp_path), tmp_path)
    tables = update_tables(study, tmp_path / "tables")
    assert unfinished(tables) == 2
    states = tables.runs.set_index("run")["state"]
    assert (states[failed], states[completed]) == ("superseded", "completed")
    (reason,) = tables.excluded.loc[tables.excluded["run"] == failed, "reason"]
    assert reason == "of an earlier version of study.yaml, failed: no memory"
    write_folders(plan, tmp_path)
    tables = update_tables(study, tmp_path / "tables")
    assert unfinished(tables) == 1
    assert tables.runs.set_index("run")["state"][failed] == "failed"


@pytest.mark.parametrize("text", ["", "lr: [", "- 1"])
def test_a_folder_whose_config_cannot_be_read_is_refused(plan: Plan, tmp_path: Path, text: str) -> None:
    path = write_folders(plan, tmp_path) / plan.rows[0].config.run / rundir.CONFIG
    path.write_text(text)
    with pytest.raises(UserError, match="file"):
        write_folders(plan, tmp_path)


def test_two_thousand_runs_are_looked_at_without_a_merge(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge costs 40 ms: the quick look takes less than a quarter of it for a run that is as it was."""
    study = write_folders(plan, tmp_path)
    monkeypatch.setattr(folders, "load_run", lambda path: pytest.fail("read in full"))
    config = plan.rows[0].config
    taken = []
    for _ in range(20):
        started = time.process_time()
        folders.require_own(config, study / config.run / rundir.CONFIG)
        taken.append(time.process_time() - started)
    assert yaml.__with_libyaml__
    assert min(taken) < 0.01
    write_folders(replace(plan, rows=plan.rows * 2), tmp_path)


def test_a_study_folder_that_is_not_under_the_root_is_refused(plan: Plan, tmp_path: Path) -> None:
    """From within the root its runs would all be planned, and a launch would begin them anew in runs/runs."""
    folder = write_folders(plan, tmp_path / "runs")
    ended = armscale("study", "status", folder.name, cwd=folder.parent)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert f"its study is called {folder.name}" in ended.stderr
    (tmp_path / "link").symlink_to(folder.parent)
    for study, root in ((folder.name, "link"), (str(folder), "runs")):
        told = armscale("study", "status", study, "--root", root, cwd=tmp_path)
        assert "2 planned" in told.stdout, told.stderr
    folder.rename(folder.with_name("renamed"))
    assert armscale("study", "status", "renamed", cwd=tmp_path).returncode == 2
