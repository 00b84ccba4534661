"""Nodes that fail or lag repeatedly, from the starts of jobs that ran on them and the rates that they reached."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaling import rundir
from scaling.study.failures import explain
from slurm.history import CUT_OFF, Start, read_starts

REPEATEDLY: Final = 2
SLOW: Final = 0.8
"""Of the median rate of the same run or its equals elsewhere."""
THEIRS: Final = ("node", "hang", "other")
"""Causes that a node can have; a run's own (memory, NaN, data...) speak against no node."""


@dataclass(frozen=True)
class Suspect:
    """A node that stands out, and what was seen on it."""

    node: str
    why: str


@dataclass(frozen=True)
class Seen:
    """One start as it counts here: its nodes, whether it ended by a fault that a node can have, and its rate."""

    nodes: tuple[str, ...]
    bad: bool
    likes: object  # starts with equal `likes` do equal work
    rate: float | None


def find_suspects(study: Path, likes: Mapping[str, object], alive: Iterable[str]) -> list[Suspect]:
    """Suspects among the nodes that the study's runs were on.

    `likes` is {run: what its speed depends on}; the last starts of the runs in `alive` are still under way.
    """
    seen: list[Seen] = []
    for run, like in likes.items():
        seen += _seen(study / run, like, under_way=run in set(alive))
    return judge(seen)


def judge(seen: list[Seen]) -> list[Suspect]:
    """A node fails repeatedly when it saw two or more bad starts, and a share of them at least twice that of the starts
    without it; it lags when two or more of its starts, and most of them, ran below 80 % of their equals' median."""
    suspects = []
    for node in sorted({node for start in seen for node in start.nodes}):
        here = [start for start in seen if node in start.nodes]
        elsewhere = [start for start in seen if node not in start.nodes]
        bad = sum(start.bad for start in here)
        share_elsewhere = sum(start.bad for start in elsewhere) / max(1, len(elsewhere))
        if bad >= REPEATEDLY and bad / len(here) >= 2 * share_elsewhere:
            suspects.append(Suspect(node, f"{bad} of {len(here)} starts on it ended badly"))
        shares = [share for start in here if (share := _share(start, elsewhere)) is not None]
        slow = [share for share in shares if share < SLOW]
        if len(slow) >= REPEATEDLY and 2 * len(slow) > len(shares):
            suspects.append(Suspect(node, f"{statistics.median(slow):.0%} of the usual rate in {len(slow)} starts"))
    return suspects


def _share(start: Seen, elsewhere: list[Seen]) -> float | None:
    """The rate of a start as a share of the median of its equals elsewhere."""
    equals = [other.rate for other in elsewhere if other.likes == start.likes and other.rate is not None]
    return start.rate / statistics.median(equals) if equals and start.rate is not None else None


def _seen(run: Path, likes: object, *, under_way: bool) -> list[Seen]:
    starts = read_starts(run)
    if not starts:
        return []
    rates: dict[int, list[float]] = defaultdict(list)
    for row in rundir.read_lines(run / rundir.METRICS)[0]:
        if row.get("images_per_second"):
            rates[row["attempt"]].append(row["images_per_second"])
    found = []
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        own = [rate for number, values in rates.items() if _within(number, start, following) for rate in values]
        last = following is None
        cut_off = start.outcome == CUT_OFF and not (last and under_way)
        failed = start.outcome == "failed" and last and explain(run).cause in THEIRS
        # The first interval holds the start-up.
        rate = statistics.median(own[1:] or own) if own else None
        found.append(Seen(start.nodes, cut_off or failed, likes, rate))
    return found


def _within(attempt: int, start: Start, following: Start | None) -> bool:
    return start.first_attempt <= attempt and (following is None or attempt < following.first_attempt)
