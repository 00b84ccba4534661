"""A launch on this machine: cancelled and retried from another shell, and runs that end in other ways."""

import dataclasses
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scaling import rundir
from scaling.attempt import Attempt, write_status
from scaling.checkpoint import committed, step_of
from scaling.reading import load_run
from scaling.study import local
from scaling.study.folders import write_folders
from scaling.study.plan import Plan, plan_study, seen_state
from scaling.study.progress import Progress
from scaling.study.table import load_study
from tests.scaling import runs
from tests.scaling.test_quickstart import armscale, tiny_study
from tests.slurm import studies
from tests.slurm.polling import eventually


def begin(command: str, study: Path) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "scaling.cli", "study", command, study.name]
    return subprocess.Popen(program, cwd=study.parent, env=runs.environment(), stdout=subprocess.PIPE, text=True)


def trains(study: Path, attempt: int) -> bool:
    folder = study.parent / rundir.DEFAULT_ROOT / "tiny"
    return any(
        row["attempt"] == attempt for file in folder.glob("*/metrics.jsonl") for row in rundir.read_lines(file)[0]
    )


@pytest.mark.slow
def test_cancelled_from_another_shell_it_saves_and_stays_cancelled_until_retried(tmp_path: Path, shards: Path) -> None:
    study = studies.write_long_run(tmp_path, shards, nodes=1, steps=100_000)
    for attempt, command in enumerate(("launch", "retry"), 1):
        running = begin(command, study)
        try:
            eventually(partial(trains, study, attempt), "it trains", 300)
            refused = armscale("study", "launch", study.name, cwd=tmp_path)
            assert (refused.returncode, "no other local launch" in refused.stderr) == (2, True), refused.stderr
            told = armscale("study", "cancel", study.name, cwd=tmp_path)
            assert "1 of 1 runs cancelled" in told.stdout, told.stdout + told.stderr
            assert running.wait(timeout=60) == 1
        finally:
            running.terminate()
        (folder,) = studies.run_folders(study)
        assert local.launcher(folder.parent) is None
        steps = [row["step"] for row in rundir.read_lines(folder / rundir.METRICS)[0]]
        assert steps == list(range(1, len(steps) + 1)), "no step was lost or done twice"
        assert step_of(committed(folder)[-1]) == len(steps)
        again = armscale("study", "launch", study.name, cwd=tmp_path)
        assert "1 cancelled of 1 runs" in again.stdout, again.stdout + again.stderr
        assert len(list((folder / rundir.ATTEMPTS).iterdir())) == attempt


def test_a_run_without_a_folder_is_not_told_to_be_cancelled(tmp_path: Path, shards: Path) -> None:
    """Nothing would remember it, and the next launch starts it."""
    study = studies.write_long_run(tmp_path, shards, nodes=1, steps=1)
    told = armscale("study", "cancel", study.name, cwd=tmp_path)
    assert (told.returncode, "0 of 1 runs cancelled" in told.stdout) == (0, True), told.stdout + told.stderr


def test_runs_share_the_gpus_in_turn(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runs at a time on two GPUs, which have the names that this process was given; without GPUs none is set."""
    folder = runs.write_run(runs.small_config(shards), tmp_path)
    config = load_run(folder / rundir.CONFIG)
    seen = []
    for given, slot in [("3,GPU-5", 0), ("3,GPU-5", 1), ("3,GPU-5", 2), ("3,GPU-5", 3), ("", 1)]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert local.slots() == (2 if given else len(os.sched_getaffinity(0)))
        worker = local.start(config, folder.parent, slot, jobs=4)
        try:
            variables = Path(f"/proc/{worker.process.pid}/environ").read_text().split("\0")
        finally:
            worker.process.kill()
            worker.process.wait()
        seen += [value.partition("=")[2] for value in variables if value.startswith("CUDA_VISIBLE_DEVICES=")]
    assert seen == ["3", "GPU-5", "3", "GPU-5", ""]


def test_a_run_whose_process_died_here_is_no_longer_running(tmp_path: Path) -> None:
    child = (
        "import sys, pathlib, scaling.attempt as a; a.Attempt.claim(pathlib.Path(sys.argv[1])).set_status('running')"
    )
    subprocess.run([sys.executable, "-c", child, str(tmp_path)], env=runs.environment(), check=True)
    assert seen_state(tmp_path) == "stopped"
    claim = tmp_path / rundir.ATTEMPTS / "1"
    claim.write_text(claim.read_text().replace(claim.read_text().split()[0], "another-host"))
    assert seen_state(tmp_path) == "running"


@pytest.fixture
def plan(tmp_path: Path, shards: Path) -> Plan:
    """One run, with its folder under runs/."""
    whole = plan_study(load_study(tiny_study(tmp_path, shards)), tmp_path / "runs")
    one = dataclasses.replace(whole, rows=whole.rows[:1])
    write_folders(one, tmp_path / "runs")
    return one


def launch(plan: Plan, root: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Launches the one run of `plan`, whose process carries out `program` instead; the run folder."""
    stand_in = root.parent / "stand-in"
    stand_in.write_text(f"#!{sys.executable}\n{program}")
    stand_in.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(stand_in))
        local.launch(plan, root, 1)
    return root / plan.study.name / plan.rows[0].config.run


def test_an_error_of_the_launcher_lets_its_runs_save(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, not SIGKILL, and the launcher, whose lock keeps others away, ends after them."""
    program = f"""
import pathlib, signal, time
def save(*_):
    time.sleep(1)
    pathlib.Path("{tmp_path}/saved").touch()
    raise SystemExit(85)
signal.signal(signal.SIGTERM, save)
pathlib.Path("{tmp_path}/trains").touch()
time.sleep(20)
"""

    def fails(*_: Any) -> None:
        eventually((tmp_path / "trains").exists, "it trains", 20)
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(Progress, "refresh", fails)
    with pytest.raises(RuntimeError, match="nobody thought of this"):
        launch(plan, tmp_path / "runs", program, monkeypatch)
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_stop_while_a_run_is_being_started_reaches_it(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    folder = launch(plan, tmp_path / "runs", "import time; time.sleep(20)", monkeypatch)
    status = rundir.read_json(folder / rundir.STATUS) or {}
    assert status["state"] == "stopped"
    assert f"exit status {-signal.SIGTERM}" in status["error"]


@pytest.mark.parametrize("state", ["planned", "running", "stopped", "failed", "blocked"])
def test_a_process_that_dies_before_its_claim_has_failed(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Whatever an earlier launch left; how far that came stays on record."""
    folder = tmp_path / "runs" / plan.study.name / plan.rows[0].config.run
    write_status(folder, state, attempt=3, step=40, error="what was before")
    launch(plan, tmp_path / "runs", "raise SystemExit(7)", monkeypatch)
    status = rundir.read_json(folder / rundir.STATUS) or {}
    assert (status["state"], status["attempt"], status["step"]) == ("failed", 3, 40)
    assert "exit status 7" in status["error"]


def test_what_a_process_says_before_its_claim_stays(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without its parent's weights, launched more than once: attempt and error are the same each time."""
    folder = tmp_path / "runs" / plan.study.name / plan.rows[0].config.run
    for _ in range(2):
        words = f"scaling.attempt.write_status(pathlib.Path({str(folder)!r}), 'failed', error='no weights')"
        launch(plan, tmp_path / "runs", f"import pathlib, scaling.attempt; {words}; raise SystemExit(2)", monkeypatch)
        assert (rundir.read_json(folder / rundir.STATUS) or {})["error"] == "no weights"


def test_a_run_that_another_process_has_taken_over_has_not_failed(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launch says how its own process ended, which nothing else tells."""
    folder = tmp_path / "runs" / plan.study.name / plan.rows[0].config.run
    Attempt.claim(folder).set_status("running", step=7)  # of this very process
    before = rundir.read_json(folder / rundir.STATUS)
    launch(plan, tmp_path / "runs", "raise SystemExit(1)", monkeypatch)
    assert rundir.read_json(folder / rundir.STATUS) == before
    told = f"running {folder.name} elsewhere, as its status says; here the process ended with exit status 1; see logs/"
    assert told in capsys.readouterr().out
    program = (
        f"import pathlib, scaling.attempt as a; a.Attempt.claim(pathlib.Path({str(folder)!r})).set_status('running')"
    )
    launch(plan, tmp_path / "runs", program, monkeypatch)
    assert (rundir.read_json(folder / rundir.STATUS) or {})["state"] == "failed"
