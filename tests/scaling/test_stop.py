"""Asked to stop where the loop is not: in an evaluation, in the first compile; and a disk that is full or read-only."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling import rundir
from scaling.checkpoint import LATEST, committed, load_latest, prune, step_name
from scaling.stop import EXIT_STOPPED
from tests.scaling.runs import STEPS, carry_out, command, curve, environment, small_config, write_run

ASKED = """
import errno, os, signal, sys, time
from functools import partial
from pathlib import Path
from scaling import files
from scaling.attempt import Attempt
from scaling.stop import StopRequest

def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

def broken(_):
    raise RuntimeError

files.write_json = full
attempt = Attempt.claim(Path(sys.argv[1]))
with StopRequest(0) as stop:
    stop.before_leaving = partial(attempt.last_word, "stopped") if sys.argv[2] == "full disk" else broken
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
"""
EMA = {"ema": 0.5, "mix_group": 4, "randaugment": ""}


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(folder), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ended(folder: Path) -> tuple[str, str]:
    status = rundir.read_json(folder / rundir.STATUS) or {}
    return status["state"], status["error"]


@pytest.mark.parametrize("trouble", ["full disk", "a fault"])
def test_before_the_first_step_the_process_ends_whatever_its_last_word_meets(tmp_path: Path, trouble: str) -> None:
    command = [sys.executable, "-c", ASKED, str(tmp_path), trouble]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == EXIT_STOPPED, ended.stderr
    if trouble == "full disk":
        assert "(stopped, SIGTERM before the first step): [Errno 28] No space left on device" in ended.stderr


@pytest.mark.slow
def test_in_an_evaluation(tmp_path: Path, shards: Path) -> None:
    """The last step is committed, the status 85; the same command only evaluates."""
    folder = write_run(small_config(shards, stage="finetune", strategy="scratch", eval_batch=1, **EMA), tmp_path)
    process = start(folder)
    pointer = folder / rundir.CHECKPOINTS / LATEST
    while not pointer.exists() or pointer.read_text().strip() != step_name(STEPS):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGUSR2)
    assert process.wait() == EXIT_STOPPED
    state, reason = ended(folder)
    assert state == "stopped"
    assert "SIGUSR2" in reason
    assert not (folder / rundir.SUMMARY).exists()
    assert {row["attempt"] for row in carry_out(folder)} == {1}
    assert (folder / rundir.SUMMARY).exists()


@pytest.mark.slow
def test_ranks_leave_an_evaluation_at_the_same_batch() -> None:
    """`polled_checks` says at which."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.scaling.polled_checks"], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_in_the_first_compile(tmp_path: Path, shards: Path) -> None:
    """Nothing is unsaved: the process leaves from inside the compiler, and the first state stays committed."""
    folder = write_run(small_config(shards, compile=True), tmp_path)
    process = start(folder)
    while not committed(folder):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(2.0)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR2)
    began = time.monotonic()
    assert process.wait() == EXIT_STOPPED
    print(f"left after {time.monotonic() - began:.2f} s")
    assert ended(folder) == ("stopped", "SIGUSR2 before the first step")
    assert not (folder / rundir.METRICS).exists()
    assert [path.name for path in committed(folder)] == [step_name(0)]


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path, shards: Path) -> None:
    """One clear error with status 2, and what was committed before is whole: elsewhere the run goes on from there."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a small disk of its own needs the right to mount one")
    config = small_config(shards, images=16 * 40, keep_checkpoints=100)
    folder = write_run(config, mount)
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(mount, copy)
    script = (
        f'mount -t tmpfs -o size=6m none {mount} && cp -r {copy}/. {mount} && "$@"; s=$?; cp -r {mount} {out}; exit $s'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command(folder)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    saved = out / folder.relative_to(mount)
    assert len(committed(saved)) > 2
    whole = write_run(config, tmp_path / "whole")
    assert curve(carry_out(saved)) == curve(carry_out(whole))


@pytest.mark.slow
def test_a_read_only_folder(tmp_path: Path, shards: Path) -> None:
    """Checkpoints cannot be written any more: status 2 and the reason; those that are there stay and serve later."""
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a read-only mount needs the right to make one")
    folder = write_run(small_config(shards), tmp_path)
    whole = curve(carry_out(folder))
    (folder / rundir.SUMMARY).unlink()
    *_, newest = committed(folder)
    shutil.rmtree(newest)
    before = [path.name for path in committed(folder)]
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(folder / rundir.CHECKPOINTS), *command(folder)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    assert ended(folder)[0] == "failed"
    assert [path.name for path in committed(folder)] == before
    assert curve(carry_out(folder)) == whole


def test_the_newest_and_one_of_every_so_many_stay(tmp_path: Path) -> None:
    """A late one stands for a step that could not be saved; a branch stays wherever it is."""
    for step in (0, 2, 4, 5, 6, 8, 11, 12, 14):
        folder = tmp_path / rundir.CHECKPOINTS / step_name(step)
        folder.mkdir(parents=True)
        (folder / "COMMITTED").write_text("{}")
    (tmp_path / rundir.CHECKPOINTS / ".step-00000016.attempt-1").mkdir()
    prune(tmp_path, keep=2, every=5, branches=[8])
    assert [path.name for path in committed(tmp_path)] == [step_name(step) for step in (5, 8, 11, 12, 14)]
    assert len(list((tmp_path / rundir.CHECKPOINTS).iterdir())) == 5


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(small_config(shards), tmp_path)
    whole = curve(carry_out(folder))
    (folder / rundir.SUMMARY).unlink()
    (newest,) = committed(folder)[-1:]
    for part in newest.glob("*.distcp"):
        part.write_bytes(part.read_bytes()[:1000])
    rows = carry_out(folder)
    assert curve(rows) == whole
    assert [row["step"] for row in rows if row["attempt"] == 2] == [STEPS - 1, STEPS]
    for checkpoint in committed(folder):
        shutil.rmtree(checkpoint)
    assert load_latest(folder, {}) is None
    assert "has vanished" in capsys.readouterr().err
