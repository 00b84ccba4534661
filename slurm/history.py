"""What every start of a job did for a run: logs/jobs.jsonl, a line when it begins and one when it ends.

A start without an end was cut off: its first node died, or Slurm killed it. Accounting is not needed for any of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scaling import rundir
from scaling.attempt import highest

JOBS: Final = "jobs.jsonl"
CUT_OFF: Final = "cut off"


@dataclass(frozen=True)
class Start:
    """One start of a job: where it ran, what it made of the run and why. Its attempts at the run are the numbers from
    `first_attempt` on, up to the next start's."""

    job: str
    restart: int
    nodes: tuple[str, ...]
    began: float
    first_attempt: int
    ended: float | None = None
    outcome: str = CUT_OFF
    reason: str = ""


def begin(run: Path, job: str, restart: int, nodes: Sequence[str]) -> Start:
    """Notes the start of a job, before anything of the run begins."""
    start = Start(job, restart, tuple(nodes), time.time(), highest(run) + 1)
    _append(run, {
        "event": "start", "time": start.began, "job": job, "restart": restart, "nodes": list(nodes),
        "first_attempt": start.first_attempt,
    })  # fmt: skip
    return start


def end(run: Path, start: Start, outcome: str, reason: str) -> None:
    """Notes how the start ended: `completed`, `requeued`, `failed`, `cancelled` or `left to Slurm`."""
    _append(run, {
        "event": "end", "time": time.time(), "job": start.job, "restart": start.restart, "outcome": outcome,
        "reason": reason,
    })  # fmt: skip


def is_newest(run: Path, start: Start) -> bool:
    """Whether no other start has begun since; one that was frozen meanwhile has nothing to say any more."""
    last = read_starts(run)[-1]
    return (last.job, last.restart) == (start.job, start.restart)


def read_starts(run: Path) -> list[Start]:
    """All starts, oldest first. Torn lines are left out."""
    starts: dict[tuple[str, int], Start] = {}
    for row in rundir.read_lines(run / rundir.LOGS / JOBS)[0]:
        key = (row["job"], row["restart"])
        if row["event"] == "start":
            nodes = tuple(row["nodes"])
            starts[key] = Start(row["job"], row["restart"], nodes, row["time"], row["first_attempt"])
        elif key in starts:
            starts[key] = replace(starts[key], ended=row["time"], outcome=row["outcome"], reason=row["reason"])
    return sorted(starts.values(), key=lambda start: start.began)


def _append(run: Path, row: dict[str, Any]) -> None:
    path = run / rundir.LOGS / JOBS
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
