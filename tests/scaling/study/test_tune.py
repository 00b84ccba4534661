"""Tuning: the same trials for every arm, a choice by held-out images alone, final runs with the chosen values."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaling import files, rundir
from scaling.errors import UserError
from scaling.study.chains import runs
from scaling.study.table import Study, load_study
from scaling.study.tune import at_edge, trials, tuned_runs, write_tuning
from tests.scaling.runs import environment
from tests.scaling.test_quickstart import armscale, tiny_study
from tests.slurm.polling import eventually

STAGE = {"images": 640, "global_batch": 64, "image_size": 32, "lr": 1e-3}
GRID = {"finetune.lr": [1e-3, 2e-3, 4e-3], "finetune.drop_path": [0.0, 0.1]}
STUDY: dict[str, Any] = {
    "name": "tuned",
    "data": {"shards": "x"},
    "axes": {"strategy": ["ar", "supervised", "scratch"], "size": ["pico", "nano"], "seed": [3, 4]},
    "defaults": {"model.patch_size": 4, "ar.cluster_side": 2, "pretrain": STAGE, "finetune": STAGE},
    "rules": [{"when": {"strategy": "supervised"}, "set": {"finetune.images": 1280, "finetune.lr": 9.0}}],
    "tune": {"grid": GRID, "held_out": 0.1},
}


def study_of(tmp_path: Path, **changes: Any) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    return load_study(path)


def finish(folder: Path, run: str, top1: float) -> None:
    """The part of a completed run that tuning reads."""
    (folder / run).mkdir(parents=True, exist_ok=True)
    files.write_json(folder / run / rundir.SUMMARY, {"top1": top1})


def test_every_arm_has_the_same_trials(tmp_path: Path) -> None:
    """6 arms of 6 points, of the first seed alone; values of the grid lie over rules."""
    table, arms = trials(study_of(tmp_path), "f", None, 10)
    assert [len(arm.trials) for arm in arms] == [6] * 6
    assert {run.seed for run in table.values()} == {3}
    for arm in arms:
        tried = [(table[run].train.lr, table[run].train.drop_path) for _, run in arm.trials]
        assert tried == [(lr, drop) for lr in GRID["finetune.lr"] for drop in GRID["finetune.drop_path"]]
        assert all(table[run].data.held_out == 0.1 and "-trial-" in run for _, run in arm.trials)


def test_the_pretraining_is_shared_with_the_final_runs(tmp_path: Path) -> None:
    table, _ = trials(study_of(tmp_path), "f", None, 10)
    shared = {run.run for run in table.values() if run.stage == "pretrain"}
    assert shared == {
        run.run for run in runs(study_of(tmp_path, tune=None), "f") if run.stage == "pretrain" and run.seed == 3
    }
    assert len(shared) == 2


def test_the_pretraining_is_shared_where_the_seed_is_no_axis(tmp_path: Path) -> None:
    axes = {name: values for name, values in STUDY["axes"].items() if name != "seed"}
    study = study_of(tmp_path, axes=axes, defaults=STUDY["defaults"] | {"seed": 5})
    trained = {run.run for run in runs(study, "f" * 16) if run.stage == "pretrain"}
    assert trained == {name for name, run in trials(study, "f" * 16, None, None)[0].items() if run.stage == "pretrain"}


def test_a_tuned_pretraining_does_without_the_held_out_images(tmp_path: Path) -> None:
    """And arms without a pretraining have no trials that differ in it alone."""
    grid = {"pretrain.lr": [1e-3, 2e-3], "finetune.lr": [1e-3, 2e-3]}
    table, arms = trials(study_of(tmp_path, tune={"grid": grid}), "f", None, 10)
    assert {run.data.held_out for run in table.values()} == {0.05}
    assert len(tuned_runs(study_of(tmp_path, tune={"grid": grid}), tmp_path, "f", None, 10)[0]) == len(table)
    counts = {arm.point["strategy"]: len(arm.trials) for arm in arms}
    assert counts == {"ar": 4, "supervised": 2, "scratch": 2}
    assert all("pretrain.lr" not in values for arm in arms[2:] for values, _ in arm.trials)


def test_final_runs_take_what_was_chosen(tmp_path: Path) -> None:
    """Arm by arm: as soon as all of its trials are completed, whatever the others do. Pretrainings wait for nothing."""
    study = study_of(tmp_path)
    table, arms = trials(study, "f", None, 10)
    found, waiting = tuned_runs(study, tmp_path, "f", None, 10)
    early = [run for run in found if run.run not in table]
    assert ([run.run for run in found[: len(table)]], waiting) == (list(table), 6)
    assert [(run.strategy, run.size, run.stage, run.seed) for run in early] == [
        ("ar", "pico", "pretrain", 4), ("ar", "nano", "pretrain", 4),
    ]  # fmt: skip

    first = arms[0]
    for number, (_, run) in enumerate(first.trials):
        finish(tmp_path, run, 0.9 if number in (3, 5) else 0.5)  # of equals the first
        if number < 5:
            assert tuned_runs(study, tmp_path, "f", None, 10)[1] == 6
    found, waiting = tuned_runs(study, tmp_path, "f", None, 10)
    final = [run for run in found if run.run not in table]
    assert waiting == 5
    assert [(run.strategy, run.size, run.stage, run.seed) for run in final] == [
        ("ar", "pico", "finetune", 3), ("ar", "pico", "pretrain", 4), ("ar", "pico", "finetune", 4),
        ("ar", "nano", "pretrain", 4),
    ]  # fmt: skip
    assert {run.run for run in early} <= {run.run for run in final}
    finetunings = [run for run in final if run.stage == "finetune"]
    assert {(run.train.lr, run.train.drop_path, run.data.held_out) for run in finetunings} == {(2e-3, 0.1, 0.0)}
    assert finetunings[0].parent in table


def test_an_axis_of_lists_is_an_arm_a_list(tmp_path: Path) -> None:
    """A condition's list means any of its values, but an arm's place on such an axis is the list itself."""
    betas = [[0.9, 0.95], [0.9, 0.999]]
    axes = {"strategy": ["scratch"], "size": ["pico"], "finetune.betas": betas}
    study = study_of(tmp_path, axes=axes, rules=[], tune={"grid": {"finetune.lr": [1e-3, 2e-3]}})
    table, arms = trials(study, "f", None, 10)
    for arm, best in zip(arms, (2e-3, 1e-3), strict=True):
        for values, run in arm.trials:
            finish(tmp_path, run, 0.9 if values["finetune.lr"] == best else 0.5)
    found, waiting = tuned_runs(study, tmp_path, "f", None, 10)
    final = {run.train.betas: run.train.lr for run in found if run.run not in table}
    assert (final, waiting) == ({(0.9, 0.95): 2e-3, (0.9, 0.999): 1e-3}, 0)


def test_what_is_told(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    _, arms = trials(study, "f", None, 10)
    for number, (_, run) in enumerate(arms[1].trials):
        finish(tmp_path, run, number / 10)
    write_tuning(study, tmp_path, "f", None, 10)
    record = rundir.read_json(tmp_path / rundir.TUNING)
    assert record is not None
    assert (record["grid"], record["held_out"], len(record["arms"])) == (GRID, 0.1, 6)
    arm = record["arms"][1]
    assert arm["arm"] == {"strategy": "ar", "size": "nano"}
    assert [trial["top1"] for trial in arm["trials"]] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert arm["chosen"] == {"finetune.lr": 4e-3, "finetune.drop_path": 0.1}
    assert arm["at_edge"] == ["finetune.lr", "finetune.drop_path"]
    assert record["arms"][0]["chosen"] is None


def test_edges() -> None:
    grid: dict[str, list[Any]] = {"lr": [1, 2, 3], "drop": [0.0, 0.1], "one": [5], "name": ["a", "b"]}
    assert at_edge(grid, {"lr": 2, "drop": 0.0, "one": 5, "name": "a"}) == []
    assert at_edge(grid, {"lr": 1, "drop": 0.1, "one": 5, "name": "b"}) == ["lr", "drop"]
    assert at_edge({"clip": [None, 1.0, 3.0], "flip": [False, True]}, {"clip": 3.0, "flip": True}) == ["clip"]


def test_trials_are_matched_like_final_runs(tmp_path: Path) -> None:
    """`match` compares arms at the same point of the grid, though trials are spanned over it."""
    table, _ = trials(study_of(tmp_path, match="images"), "f", None, 10)
    lengths = {run.strategy: run.train.images for run in table.values() if run.stage == "finetune"}
    assert lengths == {"ar": 640, "supervised": 1280, "scratch": 640}


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        ({"held_out": 0.1}, "grid"),
        ({"grid": {"finetune.lr": 1e-3}}, "tune.grid.finetune.lr"),
        ({"grid": {"size": ["pico"]}}, "no axis"),
        ({"grid": GRID, "held_out": 1.0}, "tune.held_out"),
        ({"grid": GRID, "trials": 3}, "held_out"),
        ({"grid": {"finetune.rate": [1.0]}}, "finetune.rate"),
    ],
)
def test_mistakes(tmp_path: Path, tune: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        trials(study_of(tmp_path, tune=tune), "f", None, 10)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"purpose": "throughput"}, "purpose: 'throughput' .*accuracy"),
        ({"finetune.evaluate": []}, r"finetune\.evaluate: \[\] .*classification"),
        ({"finetune.evaluate": [{"kind": "knn"}]}, r"finetune\.evaluate: \['knn'\] .*classification"),
        (
            {"finetune.evaluate": [{"kind": "classification", "dataset": "imagenet-a", "path": "x"}]},
            r"finetune\.evaluate: \['classification imagenet-a'\]",
        ),
    ],
)
def test_trials_without_a_score_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """Nothing could ever be chosen by them."""
    defaults = STUDY["defaults"] | {name: value for name, value in changes.items() if "." in name}
    study = study_of(tmp_path, defaults=defaults, purpose=changes.get("purpose", "accuracy"))
    with pytest.raises(UserError, match=told):
        tuned_runs(study, tmp_path, "f", None, 10)


@pytest.mark.slow
def test_one_launch_runs_trials_and_then_the_chosen(tmp_path: Path, shards: Path) -> None:
    """Real processes: 2 arms of 2 trials on one shared pretraining, then 2 seeds of each with the values chosen."""
    axes = {"strategy": ["ar", "scratch"], "encoder": ["mamba"], "size": ["pico"], "seed": [0, 1]}
    tune = {"grid": {"finetune.lr": [1e-4, 2e-3]}, "held_out": 0.25}
    study = tiny_study(tmp_path, shards, axes=axes, rules=[], tune=tune)
    planned = armscale("study", "plan", study, cwd=tmp_path)
    assert "6 runs and the final runs of 2 arms" in " ".join(planned.stdout.split())
    launched = armscale("study", "launch", study, "--jobs", "2", cwd=tmp_path)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "10 completed of 10 runs" in launched.stdout
    folder = tmp_path / "runs" / "tiny"
    record = rundir.read_json(folder / rundir.TUNING)
    assert record is not None
    for arm in record["arms"]:
        best = max(arm["trials"], key=lambda trial: trial["top1"])
        assert arm["chosen"] == best["values"]
        final = [run for run in _configs(folder) if _is_final(run, arm["arm"]["strategy"])]
        assert [run["train"]["lr"] for run in final] == [best["values"]["finetune.lr"]] * 2
        for run in final:
            (row,), _ = rundir.read_lines(folder / run["run"] / rundir.EVALUATIONS)
            assert (row["images"], "held out" in row["dataset"]) == (48, False)
        for trial in arm["trials"]:
            (row,), _ = rundir.read_lines(folder / trial["run"] / rundir.EVALUATIONS)
            assert (row["images"], "held out" in row["dataset"]) == (48, True)  # a quarter of 192
            assert row["top1"] == trial["top1"]
    again = armscale("study", "launch", study, cwd=tmp_path)
    assert again.returncode == 0
    assert "start" not in again.stdout
    reported = armscale("report", folder, "--output", folder / "report", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    page = (folder / "report" / "index.html").read_text()
    assert "All 4 trials" in page
    assert "strategy scratch" in page


@pytest.mark.slow
def test_a_launch_that_is_stopped_starts_no_final_runs(tmp_path: Path, shards: Path) -> None:
    """One arm is settled, the other's trial would take for ever: the stop ends the launch and not this round alone."""
    axes = {"strategy": ["supervised", "scratch"], "encoder": ["mamba"], "size": ["pico"], "seed": [0]}
    rules = [{"when": {"strategy": "scratch"}, "set": {"finetune.images": 16_000_000}}]
    study = tiny_study(tmp_path, shards, axes=axes, rules=rules, tune={"grid": {"finetune.lr": [1e-3]}})
    command = [sys.executable, "-m", "scaling.cli", "study", "launch", str(study), "--jobs", "2"]
    launcher = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "tiny"

    def both_are_where_they_should_be() -> bool:
        settled = any(folder.glob("supervised-*/summary.json"))
        return settled and any(rundir.read_lines(file)[0] for file in folder.glob("scratch-*/metrics.jsonl"))

    try:
        eventually(both_are_where_they_should_be, "one arm is settled, the other trains", 300)
        launcher.send_signal(signal.SIGTERM)
        told, _ = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == 1
    assert "1 completed, 1 stopped of 2 runs" in told
    assert told.count("start ") == 2


def _configs(folder: Path) -> list[dict[str, Any]]:
    return [yaml.safe_load((run / rundir.CONFIG).read_text()) for run in rundir.find_runs(folder)]


def _is_final(run: dict[str, Any], strategy: str) -> bool:
    return (run["strategy"], run["stage"], run["data"]["held_out"]) == (strategy, "finetune", 0.0)
