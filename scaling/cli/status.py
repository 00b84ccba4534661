"""What `study status` shows: every run, what is left, failures by cause, and nodes that stand out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from scaling import rundir
from scaling.cli.tables import styled
from scaling.errors import UserError
from scaling.study.expect import work_of
from scaling.study.failures import Failure, explain, group
from scaling.study.plan import Plan, with_seen_states
from scaling.study.progress import images_done, last_line
from scaling.study.remaining import Remaining, duration, remaining

WATCH_SECONDS = 3.0


@dataclass(frozen=True)
class Status:
    """A study as it stands: the plan with its states, and what Slurm adds where runs were submitted to it."""

    plan: Plan
    reasons: Mapping[str, str] = field(default_factory=dict)
    suspects: Sequence[tuple[str, str]] = ()
    note: str = ""

    @property
    def under_way(self) -> bool:
        """Whether anything may still change by itself."""
        return any(row.state in ("queued", "running") for row in self.plan.rows)


def read_status(plan: Plan, root: Path) -> Status:
    """The states of a plan's runs now: from their folders, and from Slurm where runs were submitted to it."""
    plan, study = with_seen_states(plan, root), root / plan.study.name
    if not (study / "slurm").is_dir():
        return Status(plan)
    from slurm.nodes import find_suspects
    from slurm.queue import ControllerError
    from slurm.states import read_standings, with_states

    try:
        standings = read_standings(plan, root)
    except (UserError, ControllerError) as error:
        return Status(plan, note=f"from the run folders alone, as Slurm does not answer: {error}")
    plan = with_states(plan, standings)
    likes = {row.config.run: (work_of(row.config), row.config.resources) for row in plan.rows}
    alive = {row.config.run for row in plan.rows if row.state == "running"}
    suspects = [(suspect.node, suspect.why) for suspect in find_suspects(study, likes, alive)]
    return Status(plan, {run: standing.reason for run, standing in standings.items()}, suspects)


def show_status(status: Status, root: Path) -> RenderableType:
    """All of it, to print."""
    plan, left = status.plan, remaining(status.plan, root)
    parts: list[RenderableType] = [runs_table(status, root, left), _summary(plan, left)]
    folder = root / plan.study.name
    failed = [
        explain(folder / row.config.run, status.reasons.get(row.config.run, ""))
        for row in plan.rows
        if row.state == "failed"
    ]
    if failed:
        parts.append(failures_table(failed))
    if status.suspects:
        parts += [f"[red]node {escape(node)}[/]: {escape(why)}" for node, why in status.suspects]
        nodes = ",".join(sorted({node for node, _ in status.suspects}))
        parts.append(f"To go on without: armscale study retry {plan.study.name} --exclude-nodes {escape(nodes)}")
    if status.note:
        parts.append(f"[yellow]{escape(status.note)}")
    return Group(*parts)


def runs_table(status: Status, root: Path, left: Remaining) -> Table:
    """A line a run."""
    table = Table(title=status.plan.study.name)
    for name in ("run", "state", "attempt", "images", "loss", "images/s", "left", "top-1", "what happened"):
        table.add_column(name, overflow="fold")
    for row in status.plan.rows:
        run = row.config.run
        folder = root / status.plan.study.name / run
        told = rundir.read_json(folder / rundir.STATUS) or {}
        summary = rundir.read_json(folder / rundir.SUMMARY) or {}
        last = last_line(folder / rundir.METRICS) or {}
        table.add_row(
            row.name,
            styled(row.state),
            str(told.get("attempt") or ""),
            f"{images_done(row, last):,} / {row.cost.images:,}" if row.cost.images is not None else "",
            f"{last['loss']:.4f}" if last.get("loss") is not None else "",
            f"{last['images_per_second']:.0f}" if last.get("images_per_second") is not None else "",
            duration(left.runs[run]) if run in left.runs else "",
            f"{summary['top1']:.2%}" if summary.get("top1") is not None else "",
            escape(status.reasons.get(run) or str(told.get("error") or "")),
        )
    return table


def _summary(plan: Plan, left: Remaining) -> str:
    counts = Counter(row.state for row in plan.rows)
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    if left.study is None:
        return told
    return f"{told}; about {duration(left.study)} of computing left at this pace"


def failures_table(failures: list[Failure]) -> Table:
    """A line a cause, with the newest example of it: its error and where its log is."""
    table = Table(title="failed, by cause")
    for name in ("cause", "runs", "error", "log"):
        table.add_column(name, overflow="fold")
    for cause, found in group(failures).items():
        table.add_row(cause, str(len(found)), escape(found[-1].line), escape(str(found[-1].log)))
    return table


def watch(read: Callable[[], Status], root: Path) -> None:
    """Shows the status until nothing is queued or running. Not on a terminal: a line whenever the counts change."""
    console = Console()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            while True:
                status = read()
                live.update(show_status(status, root), refresh=True)
                if not status.under_way:
                    return
                time.sleep(WATCH_SECONDS)
    told = ""
    while (status := read()).under_way:
        if (now := _summary(status.plan, Remaining({}, None))) != told:
            told = now
            typer.echo(told)
        time.sleep(WATCH_SECONDS)
    Console(width=220).print(show_status(status, root))
