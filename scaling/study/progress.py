"""One live display of a local launch: the whole study, and a line for every run under way."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from scaling import rundir
from scaling.study.plan import Plan, Row

MARKS = {
    "completed": "[green]done",
    "failed": "[red]failed",
    "blocked": "[yellow]blocked",
    "stopped": "[yellow]stopped",
}
TAIL_BYTES = 4096


class Progress:
    """Reads the run folders, as anybody could, and draws them. On a plain stream it prints one line an event."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.folder = folder
        self.console = Console()
        self.rows = {row.config.run: row for row in plan.rows}
        self.done = sum(row.state == "completed" for row in plan.rows)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.total = self.bars.add_task("[bold]runs", total=len(plan.rows), completed=self.done, facts="")
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Progress:
        if self.done:
            self.console.print(f"{self.done} of {len(self.rows)} runs were already completed")
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def started(self, row: Row) -> None:
        """A run has begun (or goes on)."""
        self.tasks[row.config.run] = self.bars.add_task(row.config.run, total=row.cost.images, facts="starting")
        if not self.console.is_terminal:
            self.console.print(f"start {row.config.run}", soft_wrap=True)

    def refresh(self, running: list[str]) -> None:
        """Looks at the last metrics of the runs under way."""
        for name in running:
            last = last_line(self.folder / name / rundir.METRICS)
            if last is not None:
                loss, rate = last.get("loss"), last.get("images_per_second")
                facts = f"loss {loss:.3f}  {rate:.0f} images/s" if loss is not None and rate is not None else ""
                self.bars.update(self.tasks[name], completed=images_done(self.rows[name], last), facts=facts)

    def finished(self, name: str, state: str, elsewhere: str = "") -> None:
        """A run ended in `state`; its line is replaced by its result, or by why its state is not of this launch."""
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))
        self.done += state == "completed"
        self.bars.update(self.total, completed=self.done)
        mark = MARKS.get(state, f"[yellow]{state}")
        self.console.print(f"{mark}[/] {name} {escape(elsewhere or self._result(name, state))}", soft_wrap=True)

    def _result(self, name: str, state: str) -> str:
        if state == "completed":
            summary = rundir.read_json(self.folder / name / rundir.SUMMARY) or {}
            if summary.get("top1") is not None:
                return f"top-1 {summary['top1']:.1%}"
            return f"final loss {summary['final_loss']:.4f}" if summary.get("final_loss") is not None else ""
        status = rundir.read_json(self.folder / name / rundir.STATUS) or {}
        return str(status.get("error") or "")


def images_done(row: Row, last: dict[str, Any] | None) -> int:
    """Of the images that the run costs, by the last line of its metrics: a decay's count goes on from its trunk's."""
    seen = int((last or {}).get("images_seen") or 0)
    return max(0, seen - (row.config.train.branched_at or 0))


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole object of a .jsonl file, read from its end alone; None when there is none yet."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            return value
    return None
