"""Waiting for a distributed system: nothing in Slurm is true at once, and sacct lags squeue by seconds."""

import subprocess
import time
from collections.abc import Callable


def eventually(probe: Callable[[], object], what: str, seconds: float = 90) -> None:
    """Polls until `probe` is true; fails with `what` and its last value otherwise."""
    deadline = time.monotonic() + seconds
    while not (value := probe()):
        assert time.monotonic() < deadline, f"{what}: still {value!r} after {seconds} s"
        time.sleep(0.3)


def run(*command: str, seconds: float = 60) -> str:
    """The output of a command that must succeed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    assert result.returncode == 0, f"{' '.join(command)}: {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout
