"""Worker processes: what they import, what they hold, what ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from data.config import Augmentation
from data.processes import each, sheltered
from data.stream import open_stream
from tests.data.test_kill import descendants

HOME = Path(__file__).parents[2]


def test_the_working_directory_cannot_shadow_what_workers_import(images: Path, tmp_path: Path) -> None:
    for name in ("random.py", "data.py", "numpy.py", "multiprocessing.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the working directory')")
    # As an installed command starts: its own folder comes first on the path, and nothing asks for a safe path.
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "armscale"
    command.write_text("from scaling.cli import main\nif __name__ == '__main__':\n    main()\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    options = ["--workers", "2", "--shard-samples", "10"]
    done = subprocess.run(
        [sys.executable, str(command), "data", "pack", f"imagefolder:{images}", "out", *options],
        env={**environment, "PYTHONPATH": str(HOME)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "out/train: 60 images, 3 classes, 6 shards" in done.stdout


def test_a_wrong_source_is_one_message_and_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "scaling.cli", "data", "pack", "mnist", "out"],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("armscale: source: 'mnist' is not valid")
    assert len(done.stderr.splitlines()) == 1
    assert "fashion-mnist" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    with sheltered():
        assert os.environ["PYTHONSAFEPATH"] == "1"
        assert os.environ["PYTHONPATH"] == f"{HOME}{os.pathsep}/somewhere"
    assert "PYTHONSAFEPATH" not in os.environ
    assert os.environ["PYTHONPATH"] == "/somewhere"


def double(common: int, task: int) -> int:
    if task == 13:
        raise ValueError("unlucky")
    return common * task


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_once_and_errors_come_through(workers: int) -> None:
    assert dict(each(double, 3, range(5), workers)) == {0: 0, 1: 3, 2: 6, 3: 9, 4: 12}
    with pytest.raises(ValueError, match="unlucky"):
        list(each(double, 3, range(10, 16), workers))


def test_signals_to_every_process_of_a_step_leave_the_workers_at_work(shards: Path) -> None:
    before = set(descendants(os.getpid()))
    plain = Augmentation(image_size=16)
    stream = iter(open_stream(shards, plain, global_batch=12, micro_batch=12, seed=0, workers=2))
    expected = iter(open_stream(shards, plain, global_batch=12, micro_batch=12, seed=0))
    for batch, same in islice(zip(stream, expected, strict=True), 3):
        assert batch.samples.tolist() == same.samples.tolist()
    started = set(descendants(os.getpid())) - before
    assert started
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        for process in started:
            os.kill(process, number)
    for batch, same in islice(zip(stream, expected, strict=True), 10):
        assert batch.samples.tolist() == same.samples.tolist()
    assert started <= set(descendants(os.getpid()))


def private_bytes(process: int) -> int:
    """Memory of a process that it shares with no other."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


def test_a_worker_holds_little_memory_and_ends_with_its_stream(shards: Path) -> None:
    before = set(descendants(os.getpid()))
    stream = iter(open_stream(shards, Augmentation(image_size=32), global_batch=12, micro_batch=12, seed=0, workers=1))
    for _ in islice(stream, 20):
        pass
    started = set(descendants(os.getpid())) - before
    assert started
    assert all(private_bytes(process) < 50 * 2**20 for process in started)
    workers = {process for process in started if b"forkserver" in Path(f"/proc/{process}/cmdline").read_bytes()}
    stream.close()  # type: ignore[attr-defined]  # a generator
    left = set(descendants(os.getpid())) - before
    assert len(left & workers) < len(workers)


FAILS = """
import sys
from data.config import Augmentation
from data.stream import open_stream

def train():
    plain = Augmentation(image_size=16)
    stream = iter(open_stream(sys.argv[1], plain, global_batch=12, micro_batch=12, seed=0, workers=1))
    next(stream)
    if sys.argv[2] == "held":
        train.stream = stream, train
    raise ValueError("a fault in training")

train()
"""


@pytest.mark.parametrize("kept", ["held", "by the traceback"])
def test_a_process_that_fails_ends_though_its_workers_are_deaf(shards: Path, kept: str) -> None:
    """Python ends what is left by SIGTERM, and waits."""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", FAILS, str(shards), kept],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "a fault in training" in ended.stderr
