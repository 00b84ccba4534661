"""A rank that holds the others up is named, and a slow host too."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from scaling import rundir
from scaling.config import FaultsConfig
from scaling.ranktimes import slowest_host
from scaling.watchdog import EXIT_HUNG, name_culprit
from tests.scaling.runs import command, environment, rank_pids, small_config, write_run

LIMIT = 20.0

HUNG = """
import errno, sys, time
from pathlib import Path
from types import SimpleNamespace
from scaling import files
from scaling.attempt import Attempt
from scaling.watchdog import Watchdog

def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

folder, trouble = Path(sys.argv[1]), sys.argv[2]
attempt = Attempt.claim(folder)
if trouble == "logs is a file":
    (folder / "logs").write_text("in the way")
if trouble == "no room for a status":
    files.write_json = full
if trouble == "empty report of another rank":
    (folder / "logs" / "hang-1").mkdir(parents=True)
    (folder / "logs" / "hang-1" / "rank-0.txt").touch()
watchdog = Watchdog(attempt, SimpleNamespace(rank=1, ranks=2), SimpleNamespace(fetching=False), 0.5)
time.sleep(5)
"""


def report(beats: int, *, waits: bool = False) -> dict[str, object]:
    return {"host": "node1", "beats": beats, "waits_for_data": waits}


def test_the_culprit_is_silent_behind_or_without_data() -> None:
    even = {rank: report(7) for rank in range(3)}
    assert name_culprit(even, 3) == "all ranks wait at the same place"
    assert name_culprit(even, 4).startswith("rank 3 does not answer")
    assert name_culprit(even | {1: report(6)}, 3) == "rank 1 on node1 is behind the others"
    assert name_culprit(even | {2: report(7, waits=True)}, 3) == "rank 2 on node1 waits for data"
    assert name_culprit({0: report(1, waits=True)}, 1) == "rank 0 on node1 waits for data"


def test_the_slowest_host() -> None:
    assert slowest_host(["a", "a", "b", "b"], [1.0, 1.1, 1.0, 3.0]) == ("b", pytest.approx(3.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "log", "told"),
    [
        ("logs is a file", "stderr.log", "rank 1 could not report"),
        ("logs is a file", "/dev/full", ""),
        ("no room for a status", "stderr.log", "status.json could not be written"),
        ("no room for a status", "/dev/full", ""),
        ("empty report of another rank", "stderr.log", "rank 0 does not answer"),
    ],
)
def test_a_hung_process_ends_whatever_the_disk_refuses(tmp_path: Path, trouble: str, log: str, told: str) -> None:
    """With status 1 after one limit, though its log may be full as well; the stacks are where there is room."""
    with (tmp_path / log).open("w") as stderr:
        ended = subprocess.run(
            [sys.executable, "-c", HUNG, str(tmp_path), trouble], env=environment(), stderr=stderr, check=False
        )
    assert ended.returncode == EXIT_HUNG
    if log == "stderr.log":
        said = (tmp_path / log).read_text()
        assert told in said
        assert "no step within 0.5 s" in said
        reports = [path.read_text() for path in tmp_path.glob("logs/hang-1/rank-1.txt")]
        assert 'File "<string>", line' in "".join([said, *reports])
    if trouble != "no room for a status":
        status = rundir.read_json(tmp_path / rundir.STATUS) or {}
        assert (status["state"], status["attempt"]) == ("failed", 1)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_stopped_rank_is_named(tmp_path: Path, shards: Path, frozen: int) -> None:
    """SIGSTOP to one of two ranks: within the limit the other says which, with its own stacks on record."""
    faults = FaultsConfig(step_timeout=LIMIT, timing_every=5)
    config = dataclasses.replace(small_config(shards, images=16 * 10_000, faults=faults), engine="ddp")
    folder = write_run(config, tmp_path)
    process = subprocess.Popen(
        command(folder, ranks=2), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    ranks: dict[int, int] = {}
    try:
        while len(rundir.read_lines(folder / rundir.METRICS)[0]) < 15:
            assert process.poll() is None
            time.sleep(0.1)
        ranks = rank_pids(process.pid)
        os.kill(ranks[frozen], signal.SIGSTOP)
        while (rundir.read_json(folder / rundir.STATUS) or {}).get("state") != "failed":
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        for pid in ranks.values():
            with suppress(ProcessLookupError):  # torchrun may have ended it
                os.kill(pid, signal.SIGKILL)
        process.kill() if not ranks else process.wait()
    status = rundir.read_json(folder / rundir.STATUS)
    assert status is not None
    assert f"rank {frozen} does not answer" in status["error"]
    stacks = (folder / rundir.LOGS / "hang-1" / f"rank-{1 - frozen}.txt").read_text()
    assert "in train" in stacks
    rows = rundir.read_lines(folder / rundir.LOGS / "ranks.jsonl")[0]
    assert [row["step"] for row in rows][:2] == [5, 10]
    assert all(len(row["step_seconds"]) == len(row["data_seconds"]) == 2 for row in rows)
