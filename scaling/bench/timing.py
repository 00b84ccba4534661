"""Timing of several contenders against each other on a machine that others use too.

Every round runs every contender once, in an order that rotates, so that a slow minute falls on all of them; the figures
are medians over rounds with the quartiles as spread, and a ratio is the median of the ratios within the rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median over the rounds, lower and upper quartile, and each round's own."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]

    def row(self) -> dict[str, float | int]:
        """For JSON: everything but the single rounds, whose number it states."""
        return {**{key: value for key, value in asdict(self).items() if key != "rounds"}, "rounds": len(self.rounds)}


def summarize(seconds: list[float]) -> Timing:
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (seconds[0],) * 3
    return Timing(statistics.median(seconds), low, high, tuple(seconds))


def interleave(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    synchronize: Callable[[], None] = lambda: None,
    shortest: float = 0.02,
) -> dict[str, Timing]:
    """Times each contender once a round, after one unmeasured call of each.

    A contender quicker than `shortest` seconds is called as often as fills them and its time divided. `synchronize`
    waits for the device. The garbage collector rests while a contender runs.
    """
    calls = {}
    for name, run in contenders.items():
        run()
        calls[name] = max(1, round(shortest / max(_seconds(run, 1, synchronize), 1e-9)))
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                seconds[name].append(_seconds(contenders[name], calls[name], synchronize))
                gc.collect()
    finally:
        if collecting:
            gc.enable()
    return {name: summarize(values) for name, values in seconds.items()}


def _seconds(run: Callable[[], object], calls: int, synchronize: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize()
    return (time.perf_counter() - start) / calls


def ratio(slower: Timing, faster: Timing) -> Timing:
    """How many times `faster` fits into `slower`, round by round: above 1 means that it deserves the name."""
    return summarize([a / b for a, b in zip(slower.rounds, faster.rounds, strict=True)])


def first_line(error: BaseException) -> str:
    """A contender's failure as its row tells it."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
