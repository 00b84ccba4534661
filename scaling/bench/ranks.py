"""Train steps on several ranks: starts its own processes (scaling.bench.worker) and collects what rank 0 reports.

`measure` gives the ranks a list of cases, so that one start serves them all, and hands on what rank 0 reports of a case
as soon as it is written.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling.bench.trainer import StepCase

HOME = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class RankCase:
    """A case for all ranks. With `folder` the state is not timed but saved there, or read back from there."""

    step: StepCase
    backend: str = "auto"
    compile: bool = False
    rounds: int = 5
    folder: str = ""
    save: bool = False


def measure(
    cases: Sequence[RankCase], ranks: int, *, device: str, threads: int = 1, limit: float = 600.0
) -> Iterator[dict[str, Any]]:
    """What rank 0 reports of each case, as it comes. A case that the ranks did not survive is a row with its error, and
    they start anew after it; those not reached within `limit` seconds say so. Processes for a CPU see no GPU."""
    left, deadline = list(cases), time.monotonic() + limit
    while left:
        with tempfile.TemporaryDirectory(prefix="armscale-ranks-") as name:
            given, output, log = (Path(name) / part for part in ("cases", "reports.jsonl", "log"))
            given.write_bytes(pickle.dumps(left))
            output.touch()
            for report in _reports(
                _command(ranks, given, output), _environment(device, threads), output, log, deadline
            ):
                yield {**asdict(left.pop(0)), "ranks": ranks, **report}
            if left:
                tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                yield {**asdict(left.pop(0)), "ranks": ranks, "error": f"no report; the log ends: {tail}"}
        if time.monotonic() > deadline:
            yield from ({**asdict(case), "ranks": ranks, "error": "not reached in time"} for case in left)
            return


def _command(ranks: int, given: Path, output: Path) -> list[str]:
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*start, "-m", "scaling.bench.worker", str(given), str(output)]


def _environment(device: str, threads: int) -> dict[str, str]:
    paths = os.pathsep.join([str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])])
    location = {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}
    return os.environ | location | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})


def _reports(
    command: list[str], environment: dict[str, str], output: Path, log: Path, deadline: float
) -> Iterator[dict[str, Any]]:
    """Reports of rank 0 while the processes live; at the deadline their whole group is ended."""
    with log.open("wb") as file, output.open(encoding="utf-8") as lines:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            while True:
                ended = process.poll() is not None or time.monotonic() > deadline
                for line in lines:
                    yield json.loads(line)
                if ended:
                    return
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
