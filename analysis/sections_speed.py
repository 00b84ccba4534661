"""What the report says of speed and cost: rates with intervals, what an accuracy cost, what the benches measured."""

from __future__ import annotations

import pandas as pd

from analysis import control, page, style
from analysis.arms import ARM, several
from analysis.page import Column
from analysis.sections import number_of
from analysis.setups import setups
from analysis.tables import Tables
from analysis.throughput import STEADY_RULE, cost_to_accuracy

CELL = (
    Column("strategy", "Strategy", page.strategy, numeric=False),
    *(Column(name, name.capitalize(), page.text, numeric=False) for name in ("encoder", "size", "stage")),
)
SPEED_TABLE = (
    Column("setup", "Strategy", page.strategy, numeric=False),
    *CELL[1:],
    Column("devices", "Devices", page.count),
    Column("engine", "Engine", page.text, numeric=False),
    Column("images_per_second_per_device", "Images/s and device", page.number),
    Column("interval", "95 %", page.text),
    Column("tokens_per_second_per_device", "Tokens/s and device", page.count),
    Column("step_seconds", "Step, s", page.number),
    Column("data_share", "waiting for data", page.percent),
    Column("mfu", "MFU", page.percent),
    Column("memory_bytes", "Memory", page.memory),
    Column("runs", "Runs", page.count),
    Column("odd", "Log agrees with itself", page.text, numeric=False),
)
COST_TABLE = (
    Column("protocol", "Evaluated by", page.text, numeric=False),
    Column("strategy", "Strategy", page.strategy, numeric=False),
    Column("encoder", "Encoder", page.text, numeric=False),
    *control.MEASURED,
    Column("size", "Size", page.text, numeric=False),
    Column("reached", "Runs that reached it", page.text),
    Column("gpu_hours", "Device hours", page.number),
    Column("cost", "Cost", page.number),
    Column("hours", "Hours of the clock", page.number),
    Column("images", "Images", page.count),
    Column("top1", "Top-1 at the end", page.percent),
)
STEP_TABLE = (
    *CELL,
    Column("device", "Device", page.text, numeric=False),
    Column("engine", "Engine", page.text, numeric=False),
    Column("name", "What ran", page.text, numeric=False),
    Column("micro_batch", "Batch", page.count),
    Column("step_seconds", "Step, s", page.number),
    Column("images_per_second", "Images/s", page.number),
    Column("mfu", "MFU", page.percent),
    Column("scan_share", "Share of the scan", page.percent),
    Column("peak_memory_bytes", "Memory", page.memory),
    Column("error", "Error", page.sentence, numeric=False),
)
EFFICIENCY_TABLE = (
    Column("kind", "Kind", page.text, numeric=False),
    *CELL,
    Column("resolution", "Pixels", page.count),
    Column("device", "Device", page.text, numeric=False),
    Column("precision", "Precision", page.text, numeric=False),
    Column("config.compile", "Compiled", page.text, numeric=False),
    Column("config.checkpointing", "Checkpointing", page.text, numeric=False),
    Column("engine", "Engine", page.text, numeric=False),
    Column("devices", "Devices", page.count),
    Column("batch", "Batch (a device if weak)", page.count),
    Column("rate", "Images/s and device", page.number),
    Column("efficiency", "Efficiency", page.percent),
)


def speed(tables: Tables, runs: pd.DataFrame) -> str:
    """Medians over the runs of one kind of throughput.speeds, and the median of their intervals."""
    short = tables.metrics.groupby(["study", "run"]).ngroups - len(runs)
    note = f"<p>Too short for a steady state, so without a speed: {number_of(short, 'run')}.</p>" if short else ""
    if runs.empty:
        return note
    keys = ["setup", "strategy", "encoder", "size", "stage", "devices", "engine"]
    named = setups(runs, beside=keys)
    runs = runs.assign(setup=named, low=runs["low"] / runs["devices"], high=runs["high"] / runs["devices"])
    groups = runs.groupby(keys, dropna=False)
    table = groups.median(numeric_only=True)
    table["runs"] = groups.size()
    odd = groups["consistent"].agg(lambda values: int((~values).sum()))
    table["odd"] = [f"not in {number_of(count, 'run')}" if count else "yes" for count in odd]
    table["interval"] = [
        f"{page.number(low)} to {page.number(high)}" if low < high else None  # one logged interval has none
        for low, high in table[["low", "high"]].to_numpy()
    ]
    table = table.reset_index().sort_values(["stage", "strategy", "encoder", "parameters", "devices"], kind="stable")
    return f"{note}{page.table(table, SPEED_TABLE, tall=True)}" + (
        f"<p>{STEADY_RULE[0].upper()}{STEADY_RULE[1:]}; the median over runs of one kind. 95 %: bootstrap interval of "
        "a run's median rate. A log agrees with itself where images per second times seconds a step is the batch, "
        "within 5 %.</p>"
    )


def target_cost(tables: Tables, target: float | None, price: float) -> str:
    """What it took to reach an accuracy; the default target is the median of the final accuracies."""
    finished = tables.completed["top1"].dropna()
    if finished.empty:
        return ""
    wanted = float(finished.median()) if target is None else target
    costs = cost_to_accuracy(tables, wanted, price)
    rows = []
    cell = ["protocol", *ARM, "size"]
    for place, part in costs.groupby(cell, dropna=False):
        reached = int(part["reached"].sum())
        middle = part[["gpu_hours", "cost", "hours", "images", "top1"]].median()
        text = f"{reached} of {len(part)}" if reached else "not reached"
        rows.append({**dict(zip(cell, place, strict=True)), "reached": text, **middle})
    table = style.reading_order(pd.DataFrame(rows), cell)
    table = table.sort_values("gpu_hours", kind="stable", na_position="last")
    alike = [name for name in ("protocol", "resolution", "data") if not several(table, name)]
    table = table.drop(columns=[*alike, *([] if price else ["cost"])])
    why = "The median of the final accuracies, for want of a target" if target is None else "The target asked for"
    return (
        f"<h3>What {100 * wanted:.1f} % top-1 cost</h3><p>{why}. Medians over the runs that reached it, "
        " pretraining included, up to the first evaluation at or above it; so the number depends on how often the "
        "runs were evaluated. Top-1 at the end is the median over all runs.</p>"
        f"{page.table(table, COST_TABLE, tall=True)}"
    )


def efficiency(cells: pd.DataFrame) -> str:
    """The numbers of the efficiency picture."""
    return page.table(cells, EFFICIENCY_TABLE, tall=True) if len(cells) else ""


def bench_steps(table: pd.DataFrame) -> str:
    """What `bench step` measured."""
    if table.empty:
        return ""
    note = (
        "<p>Whole steps on data that is already on the device, so without reading and augmenting. Share of the scan: "
        "the selective scan, forward and backward, of the whole step.</p>"
    )
    return f"<h3>Whole steps, measured alone</h3>{note}{page.table(table, STEP_TABLE, tall=True)}"
