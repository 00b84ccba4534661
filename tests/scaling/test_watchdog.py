"""A rank that holds the others up is named, and a slow host too."""

import dataclasses
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from scaling import rundir
from scaling.config import FaultsConfig
from scaling.ranktimes import slowest_host
from scaling.watchdog import name_culprit
from tests.scaling.runs import command, environment, rank_pids, small_config, write_run

LIMIT = 20.0


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
