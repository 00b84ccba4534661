"""The record of what was submitted: who may launch, and what a launch that was cut off leaves."""

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scaling.errors import UserError
from slurm.batches import JOB, Batch, drop, newest, next_batches, only_launch, read_batch, read_batches, write_batch


def test_of_many_launches_at_once_one_goes_ahead(tmp_path: Path) -> None:
    def launch(_: int) -> bool:
        try:
            with only_launch(tmp_path):
                return all(refused.acquire(timeout=30) for _ in range(7))
        except UserError:
            refused.release()
            return False

    refused = threading.Semaphore(0)
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(launch, range(8))) == [False] * 7 + [True]
    with only_launch(tmp_path):
        pass


def test_a_launch_that_was_killed_here_is_succeeded_and_one_elsewhere_is_named(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    claims = tmp_path / "slurm" / "launches"
    claims.mkdir(parents=True)
    (claims / "3").write_text(f"{socket.gethostname()} {dead.pid}\n")
    with only_launch(tmp_path):
        assert (claims / "4").read_text().split() == [socket.gethostname(), str(os.getpid())]
    (claims / "5").write_text(f"another-host {dead.pid}\n")
    with pytest.raises(UserError, match=r"another-host") as refusal, only_launch(tmp_path):
        pass
    assert str(claims / "5") in str(refusal.value)


def test_a_dropped_batch_has_no_work_and_its_number_is_not_given_again(tmp_path: Path) -> None:
    batch = Batch(next(next_batches(tmp_path)), {0: "a", 1: "b"})
    write_batch(batch, "#!/bin/bash\n")
    assert read_batches(tmp_path) == [batch]
    assert batch.job is None
    drop(batch)
    assert read_batches(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        read_batch(batch.folder)
    assert next(next_batches(tmp_path)).name == "batch-0002"


def test_the_last_batch_counts_and_names_are_unique_to_a_folder(tmp_path: Path) -> None:
    folders = next_batches(tmp_path)
    for runs in ({0: "a", 1: "b"}, {4: "b"}):
        batch = Batch(next(folders), runs)
        write_batch(batch, "")
        (batch.folder / JOB).write_text("17\n")
    first, second = read_batches(tmp_path)
    assert first.job == "17"
    assert newest([first, second]) == {"a": (first, 0), "b": (second, 4)}
    names = {first.name, second.name, Batch(tmp_path / "elsewhere" / "slurm" / "batch-0001", {}).name}
    assert len(names) == 3
