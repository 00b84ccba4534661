"""The tables of `study plan`."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.table import Table

from analysis.settings import SETTINGS, by_arm
from scaling.study.expect import ASSUMED_DEVICE, ASSUMED_MFU, Expectation, Measured, expect
from scaling.study.fit import memory_of
from scaling.study.identity import flatten
from scaling.study.plan import Plan, Row

STATE_STYLES = {"completed": "green", "running": "cyan", "failed": "red", "blocked": "yellow", "cancelled": "yellow"}


def show(table: RenderableType) -> None:
    """Prints a table whole: a terminal wraps it, a file or pipe gets full-width rows."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)
    console.print(table)


def plan_table(plan: Plan, measured: Measured, price: float | None) -> Table:
    """The tree of runs with their costs; `price` is that of a device hour."""
    expected = [expect(row, measured) for row in plan.rows]
    data = f"{plan.data.samples:,} training images" if plan.data.samples else "size of the training split not known yet"
    follow = f" and the final runs of {plan.waiting} arms, when their trials are completed" if plan.waiting else ""
    table = Table(
        title=f"{plan.study.name}: {len(plan.rows)} runs{follow}, {data}",
        caption=_totals(plan, expected, price) + _basis(expected, measured),
        caption_justify="left",
    )
    for name in ("run", "state"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "images", "batch", "px", "tokens", "GFLOPs/image", "train FLOPs", "memory", "GPU-hours"):
        table.add_column(name, justify="right")
    if price is not None:
        table.add_column("cost", justify="right")
    for row, expectation in zip(plan.rows, expected, strict=True):
        table.add_row(*_plan_cells(row, expectation, price, plan.data.classes))
    return table


def _plan_cells(row: Row, expectation: Expectation, price: float | None, classes: int | None) -> list[str]:
    own, train, hours = row.cost, row.config.train, expectation.device_hours
    flops = None if own.train_flops is None or own.scan_flops is None else own.train_flops + own.scan_flops
    told = "" if hours is None else f"{hours:.3g}{'' if expectation.measured else '*'}"
    cells = [
        "  " * row.level + ("└ " if row.level else "") + row.name,
        styled(row.state),
        f"{own.parameters / 1e6:.2f} M",
        f"{own.images:,}" if own.images is not None else "",
        str(train.global_batch),
        str(train.image_size),
        str(own.tokens_per_image),
        f"{(own.flops_per_image + own.scan_flops_per_image) / 1e9:.3g}",
        f"{flops:.3g}" if flops is not None else "",
        f"{memory_of(row, classes).peak / 2**30:.2f} GiB",
        told,
    ]
    return cells if price is None else [*cells, "" if hours is None else f"{hours * price:,.2f}"]


def _totals(plan: Plan, expected: list[Expectation], price: float | None) -> str:
    """Hours and money of the whole study and of what is not completed yet."""
    hours = [(expectation.device_hours or 0.0, row.state) for row, expectation in zip(plan.rows, expected, strict=True)]
    whole, left = sum(hour for hour, _ in hours), sum(hour for hour, state in hours if state != "completed")
    unknown = sum(expectation.device_hours is None for expectation in expected)
    told = f"{whole:.3g} GPU-hours in all, {left:.3g} to go"
    if price is not None:
        told += f"; at {price:g} a GPU-hour {whole * price:,.2f} in all, {left * price:,.2f} to go"
    return told + (f"; {unknown} runs of unknown length left out" if unknown else "") + "\n"


def _basis(expected: list[Expectation], measured: Measured) -> str:
    """What the hours rest on, and what the memory leaves out."""
    devices = sorted({expectation.measured for expectation in expected if expectation.measured})
    told = [f"GPU-hours by rates measured on {', '.join(devices)}"] if devices else []
    if any(expectation.device_hours is not None and not expectation.measured for expectation in expected):
        device = measured.device or ASSUMED_DEVICE
        told.append(f"* assumes an MFU of {ASSUMED_MFU:.0%} of the dense bf16 peak of one {device}")
    told.append("memory is the estimated peak of one rank")
    return "; ".join(told)


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


def styled(state: str) -> str:
    """A state in its colour."""
    style = STATE_STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state
