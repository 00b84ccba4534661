"""How long what is left of a study takes, from the rates that its runs have reached so far."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling import rundir
from scaling.study.plan import Plan, Row
from scaling.study.progress import images_done, last_line


@dataclass(frozen=True)
class Remaining:
    """Seconds left of the runs under way, and of the whole study at its present pace; None where nothing tells."""

    runs: dict[str, float]
    study: float | None


def remaining(plan: Plan, root: Path) -> Remaining:
    """By images left over images a second: a run's own last rate, else that of its equals, else by its FLOPs.

    The study takes as long as its work over the runs at a time, and no less than its longest chain of stages.
    """
    last = {row.config.run: last_line(root / plan.study.name / row.config.run / rundir.METRICS) for row in plan.rows}
    speeds: list[float] = []  # FLOPs a second of whole runs
    by_work: dict[tuple[str, ...], list[float]] = {}
    for row in plan.rows:
        if (rate := _rate(last[row.config.run])) is not None:
            by_work.setdefault(_work(row), []).append(rate)
            speeds.append(rate * (row.cost.flops_per_image + row.cost.scan_flops_per_image))
    left: dict[str, float] = {}
    chain: dict[str, float] = {}
    for row in plan.rows:  # parents stand before their children
        run, images = row.config.run, row.cost.images
        if row.state in ("completed", "cancelled", "failed", "blocked"):
            continue
        if images is None or not speeds:
            return Remaining({}, None)
        flops = row.cost.flops_per_image + row.cost.scan_flops_per_image
        rates = by_work.get(_work(row))
        rate = _rate(last[run]) or (statistics.median(rates) if rates else statistics.median(speeds) / flops)
        left[run] = max(0, images - images_done(row, last[run])) / rate
        chain[run] = left[run] + chain.get(row.config.parent or "", 0.0)
    at_a_time = max(1, sum(row.state == "running" for row in plan.rows))
    study = max(sum(left.values()) / at_a_time, max(chain.values(), default=0.0)) if left else None
    running = {row.config.run for row in plan.rows if row.state == "running"}
    return Remaining({run: seconds for run, seconds in left.items() if run in running}, study)


def _work(row: Row) -> tuple[str, ...]:
    return row.config.strategy, row.config.encoder, row.config.size, row.config.stage


def _rate(line: dict[str, Any] | None) -> float | None:
    rate = (line or {}).get("images_per_second")
    return float(rate) if rate else None


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"
