"""Interrupted anywhere, a run continues from its last commit and ends as if nothing had happened, to the bit."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from scaling import rundir
from scaling.checkpoint import COMMIT, committed, load_latest
from scaling.errors import UserError
from scaling.stop import EXIT_STOPPED
from tests.scaling.runs import STEPS, carry_out, command, curve, environment, small_config, write_run


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(folder), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_asked_to_stop(tmp_path: Path, shards: Path, number: signal.Signals) -> None:
    """A signal after the first step: the step under way is committed, status 85, and the rest follows later."""
    folder = write_run(small_config(shards, images=16 * 400, checkpoint_every=1000), tmp_path)
    process = start(folder)
    while not (folder / rundir.METRICS).exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == EXIT_STOPPED
    status = rundir.read_json(folder / rundir.STATUS)
    assert status is not None
    assert status["state"] == "stopped"
    assert number.name in status["error"]
    last = rundir.read_lines(folder / rundir.METRICS)[0][-1]["step"]
    assert committed(folder)[-1].name == f"step-{last:08d}"


@pytest.mark.slow
def test_asked_to_stop_before_the_first_step(tmp_path: Path, shards: Path) -> None:
    """Nothing is unsaved, so the process leaves at once; the folder says that it stopped and why."""
    folder = write_run(small_config(shards), tmp_path)
    process = start(folder)
    while not (folder / rundir.STATUS).exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR2)
    assert process.wait() == EXIT_STOPPED
    status = rundir.read_json(folder / rundir.STATUS)
    assert status is not None
    assert (status["state"], status["attempt"]) == ("stopped", 1)
    assert "SIGUSR2" in status["error"]
    assert len(curve(carry_out(folder))) == STEPS


@pytest.mark.slow
def test_a_completed_run_is_left_alone(tmp_path: Path, shards: Path) -> None:
    folder = write_run(small_config(shards), tmp_path)
    carry_out(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    carry_out(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_checkpoint_without_its_marker_does_not_exist(tmp_path: Path, shards: Path) -> None:
    config = small_config(shards)
    whole, torn = write_run(config, tmp_path / "whole"), write_run(config, tmp_path / "torn")
    expected = curve(carry_out(whole))
    carry_out(torn)
    (torn / rundir.SUMMARY).unlink()
    newest = committed(torn)[-1]
    (newest / COMMIT).unlink()
    rows = carry_out(torn)
    assert curve(rows) == expected
    assert [row["step"] for row in rows if row["attempt"] == 2] == [STEPS - 1, STEPS]


@pytest.mark.slow
def test_another_config_is_refused(tmp_path: Path, shards: Path) -> None:
    folder = write_run(small_config(shards), tmp_path)
    carry_out(folder)
    before = (folder / rundir.CONFIG).read_text()
    (folder / rundir.SUMMARY).unlink()
    carry_out(folder, "train.lr=2e-3", status=2)
    carry_out(folder, "train.learning_rate=2e-3", status=2)
    assert (folder / rundir.CONFIG).read_text() == before


def test_a_spoilt_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / rundir.CHECKPOINTS / "step-00000002"
    folder.mkdir(parents=True)
    (folder / COMMIT).write_text("1\n")
    with pytest.raises(UserError, match="step-00000002"):
        load_latest(tmp_path, {})
    assert load_latest(tmp_path / "nothing", {}) is None
