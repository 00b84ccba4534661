"""Tables that the study commands print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from analysis.settings import SETTINGS, by_arm
from scaling import rundir
from scaling.cost import dense_peak
from scaling.study.identity import flatten
from scaling.study.plan import Plan, Row
from scaling.study.progress import last_line

ASSUMED_DEVICE, ASSUMED_MFU = "H100", 0.4
STATE_STYLES = {"completed": "green", "running": "cyan", "failed": "red", "blocked": "yellow", "cancelled": "yellow"}


def show(table: Table) -> None:
    """Prints a table whole: a terminal wraps it, a file or pipe gets full-width rows."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)
    console.print(table)


def plan_table(plan: Plan) -> Table:
    """The tree of runs with their costs."""
    peak = dense_peak(ASSUMED_DEVICE, "bf16")
    assert peak is not None
    data = f"{plan.data.samples:,} training images" if plan.data.samples else "size of the training split not known yet"
    follow = f" and the final runs of {plan.waiting} arms, when their trials are completed" if plan.waiting else ""
    table = Table(
        title=f"{plan.study.name}: {len(plan.rows)} runs{follow}, {data}",
        caption=f"GPU-hours assume {ASSUMED_MFU:.0%} of the dense bf16 peak of one {ASSUMED_DEVICE}; "
        "memory is fp32 weights, gradients and AdamW's moments, without activations",
    )
    for name in ("run", "state"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "images", "batch", "px", "tokens", "GFLOPs/image", "train FLOPs", "memory", "GPU-hours"):
        table.add_column(name, justify="right")
    for row in plan.rows:
        table.add_row(*_plan_cells(row, peak))
    return table


def _plan_cells(row: Row, peak: float) -> list[str]:
    price, train = row.cost, row.config.train
    flops = None if price.train_flops is None or price.scan_flops is None else price.train_flops + price.scan_flops
    return [
        "  " * row.level + ("└ " if row.level else "") + row.name,
        _styled(row.state),
        f"{price.parameters / 1e6:.2f} M",
        f"{price.images:,}" if price.images is not None else "",
        str(train.global_batch),
        str(train.image_size),
        str(price.tokens_per_image),
        f"{(price.flops_per_image + price.scan_flops_per_image) / 1e9:.3g}",
        f"{flops:.3g}" if flops is not None else "",
        f"{price.state_bytes / 2**30:.2f} GiB",
        f"{flops / (ASSUMED_MFU * peak) / 3600:.2g}" if flops is not None else "",
    ]


def settings_table(plan: Plan) -> Table:
    """What each stage of each arm does to images and weights; what differs between arms stands out."""
    rows = by_arm(flatten(row.config) for row in plan.rows)
    caption = "≠ : differs between the arms that have this stage"
    if any(row.stage == "pretrain" for row in rows) and not any(row.arm.startswith("scratch") for row in rows):
        caption += "; without the strategy scratch nothing shows what pretraining adds"
    table = Table(title="settings by stage and arm", caption=caption)
    for name in ("stage", "arm", *SETTINGS):
        table.add_column(name, overflow="fold")
    for row in rows:
        told = [
            f"[yellow]{row.values[name]} ≠[/]" if name in row.differing and row.values[name] else row.values[name]
            for name in SETTINGS
        ]
        table.add_row(row.stage, row.arm, *told)
    return table


def _styled(state: str) -> str:
    style = STATE_STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state


def status_table(plan: Plan, root: Path, reasons: Mapping[str, str] | None = None) -> Table:
    """Where every run stands. `reasons` by run say what its folder cannot know."""
    table = Table(title=plan.study.name)
    for name in ("run", "state", "attempt", "images", "loss", "images/s", "top-1", "what happened"):
        table.add_column(name, overflow="fold")
    for row in plan.rows:
        folder = root / plan.study.name / row.config.run
        status = rundir.read_json(folder / rundir.STATUS) or {}
        summary = rundir.read_json(folder / rundir.SUMMARY) or {}
        last = last_line(folder / rundir.METRICS) or {}
        table.add_row(
            row.name,
            _styled(row.state),
            str(status.get("attempt") or ""),
            f"{last.get('images_seen', 0):,} / {row.cost.images:,}" if row.cost.images is not None else "",
            f"{last['loss']:.4f}" if last.get("loss") is not None else "",
            f"{last['images_per_second']:.0f}" if last.get("images_per_second") is not None else "",
            f"{summary['top1']:.2%}" if summary.get("top1") is not None else "",
            (reasons or {}).get(row.config.run) or str(status.get("error") or ""),
        )
    return table
