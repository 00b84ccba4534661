"""Pictures of speed: rates against size, where the time of a step goes, memory and MFU, efficiency over devices, and
whole steps as a bench times them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from analysis import style
from analysis.arms import several
from analysis.setups import told_setting
from analysis.style import Picture
from analysis.tables import Tables
from analysis.throughput import COMPARED, STEADY_RULE, study_rates

SPEED = (
    ("images_per_second", "Images per second"),
    ("tokens_per_second", "Tokens per second"),
    ("step_seconds", "Seconds per optimiser step"),
)
STAGES = {"pretrain": "Pretraining", "finetune": "Finetuning", "probe": "Probe"}
CELL = ["strategy", "encoder", "size", "stage"]
PARTS = (("data_seconds", "waiting for data", style.MUTED), ("model_seconds", "computing", "#0072B2"))
RESOURCES = (("mfu", "Model FLOPs utilisation"), ("memory_gib", "Peak memory of a device, GiB"))
CASES_A_ROW = 3
BARS = 40
"""Rows of the time breakdown; of more kinds of runs, the slowest."""


def speed(tables: Tables) -> Picture | None:
    """Images and tokens a second and the time of a step against parameters, a row for each stage."""
    data = study_rates(tables)
    data = data[(data["images_per_second"] > 0) & (data["parameters"] > 0)].reset_index(drop=True)
    if data.empty:
        return None
    stages = sorted(data["stage"].unique(), key=lambda stage: ("pretrain", "finetune", "probe", stage).index(stage))
    figure, axes = style.panels(len(stages), 3, 11.6, 3.5 * len(stages))
    for row, stage in zip(axes, stages, strict=True):
        part = data[data["stage"] == stage]
        for panel, (column, label) in zip(row, SPEED, strict=True):
            _speed_panel(panel, part.dropna(subset=column), column, named=column == SPEED[-1][0])
            panel.set_title(STAGES.get(stage, stage) + f": {label.lower()}")
            panel.set_xlabel("Parameters")
            style.log_axis(panel, "x", part["parameters"])
    style.size_legend(axes[0][0], style.size_order(data), above_title=True)
    devices = sorted(tables.completed["device"].dropna().unique())
    caption = (
        f"How fast training ran ({STEADY_RULE}), over all devices of a run"
        + (f", on {', '.join(devices)}" if devices else "")
        + ". Images and tokens per second: higher is faster; seconds per step: lower is faster. "
        "Runs that shared a machine with others slow each other down, so these are speeds as observed, not limits."
    )
    return Picture("throughput", "Training speed against model size", caption, figure, data, wide=True)


def _speed_panel(axes: Axes, data: pd.DataFrame, column: str, named: bool) -> None:
    """A line a set-up, its name at the end where `named`."""
    ends = []
    for setup in style.strategy_order(data["setup"]):
        runs = data[data["setup"] == setup]
        cells = runs.groupby("size")[["parameters", column]].median().sort_values("parameters")
        colour, dashes = style.hue(setup), style.LINES.get(str(runs["encoder"].iloc[0]), ":")
        axes.plot(cells["parameters"], cells[column], color=colour, linestyle=dashes, lw=1.4)
        for size, cell in cells.iterrows():
            axes.plot(cell["parameters"], cell[column], style.marker(str(size)), color=colour, mec="white", mew=0.8)
        end = cells.iloc[-1]
        ends.append((float(end["parameters"]), float(end[column]), style.strategy_name(setup), colour))
    if data.empty:
        return
    style.log_axis(axes, "y", data[column])
    axes.margins(x=0.08, y=0.1)
    if named:
        style.label_ends(axes, ends, gap=0.075)


def step_parts(tables: Tables) -> Picture | None:
    """How much of a step each kind of run waits for data and computes, the slowest on top."""
    runs = study_rates(tables)
    runs = runs[runs["step_seconds"] > 0].dropna(subset="data_seconds")
    if runs.empty:
        return None
    kind = [*CELL, "setup"]
    data = runs.groupby(kind, dropna=False)[["step_seconds", "data_seconds"]].median().reset_index()
    data["model_seconds"] = (data["step_seconds"] - data["data_seconds"]).clip(lower=0)
    data = data.sort_values(["step_seconds", *kind], ascending=[False, *[True] * 5], ignore_index=True).head(BARS)
    figure, grid = style.panels(1, 2, 11.6, 1.0 + 0.24 * len(data), sharey=True)
    heights = -np.arange(len(data))
    for axes, unit in zip(grid[0], (pd.Series(1.0, data.index), data["step_seconds"]), strict=True):
        start = np.zeros(len(data))
        for name, label, colour in PARTS:
            width = (data[name] / unit).to_numpy()
            axes.barh(heights, width, left=start, height=0.72, color=colour, label=label)
            start += width
    texts = [f"{style.strategy_name(str(row.setup))}, {row.size}, {row.stage}" for row in data.itertuples()]
    grid[0][0].set_yticks(heights, texts)
    grid[0][0].set_ylim(-len(data) + 0.4, 0.6)
    grid[0][0].set(xlabel="Seconds per optimiser step", title="Seconds")
    grid[0][1].set(xlabel="Share of the step", title="Share", xlim=(0, 1))
    grid[0][1].xaxis.set_major_formatter(PercentFormatter(1.0))
    grid[0][1].legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2, borderaxespad=0.2)
    caption = (
        f"Medians in steady state ({STEADY_RULE}). Waiting for data: the time in which the training loop had no batch "
        "to work on; computing: the rest of the step (forward, backward, communication, optimiser). A step that waits "
        "is limited by reading and augmenting images, not by the model."
    )
    return Picture("step_parts", "Where the time of a step goes", caption, figure, data, wide=True)


def resources(tables: Tables) -> Picture | None:
    """MFU and memory against size, of what the runs logged."""
    data = study_rates(tables)
    data["memory_gib"] = data["memory_bytes"].fillna(data["peak_memory_bytes"]) / 2**30
    data = data[data["parameters"] > 0]
    shown = [(column, label) for column, label in RESOURCES if data[column].notna().any()]
    stages = [stage for stage in STAGES if stage in set(data["stage"])]
    if not shown or not stages:
        return None
    figure, axes = style.panels(len(stages), len(shown), 5.8 * len(shown), 3.5 * len(stages))
    for row, stage in zip(axes, stages, strict=True):
        for panel, (column, label) in zip(row, shown, strict=True):
            part = data[(data["stage"] == stage) & data[column].notna()]
            _speed_panel(panel, part, column, named=True)
            panel.set(title=f"{STAGES[stage]}: {label[0].lower() + label[1:] if label[1].islower() else label}")
            panel.set_xlabel("Parameters")
            if len(part):
                style.log_axis(panel, "x", part["parameters"])
            if column == "mfu":
                panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    style.size_legend(axes[0][0], style.size_order(data), above_title=True)
    caption = (
        "MFU: counted matrix FLOPs per second over the dense peak of the device and precision; the scan is not in it, "
        "and without a known peak there is none. Memory: the largest that a device held."
    )
    title = "Use of the devices" if len(shown) > 1 else shown[0][1]
    return Picture("resources", title, caption, figure, data, wide=len(shown) > 1)


def step_rates(table: pd.DataFrame) -> Picture | None:
    """Images per second of the contenders of every case of `bench step`, a panel a case; columns benches.STEPS."""
    data = style.reading_order(table.dropna(subset="images_per_second"), ["stage", "size"])
    if data.empty:
        return None
    cases = list(data.groupby([*CELL, "micro_batch", "device"], sort=False, dropna=False))
    most = max(len(rows) for _, rows in cases)
    columns = min(len(cases), CASES_A_ROW)
    lines = math.ceil(len(cases) / columns)
    width = 1.6 + 3.4 * columns if columns < CASES_A_ROW else 11.6
    figure, grid = style.panels(lines, columns, width, (1.1 + 0.36 * most) * lines)
    panels = [axes for line in grid for axes in line]
    for axes in panels[len(cases) :]:
        axes.set_axis_off()
    for axes, ((_, _, size, stage, batch, _), rows) in zip(panels, cases, strict=False):
        rows = rows.sort_values("images_per_second", ignore_index=True)
        baseline = rows["name"].str.startswith("baseline ")
        colours = [style.MUTED if grey else style.hue(str(rows["strategy"].iloc[0])) for grey in baseline]
        axes.barh(rows.index, rows["images_per_second"], height=0.7, color=colours)
        axes.set_yticks(rows.index, rows["name"].str.removeprefix("baseline "))
        other = rows.loc[baseline, "images_per_second"].min()
        for place, rate in enumerate(rows["images_per_second"]):
            text = f" {rate:,.0f}" + ("" if np.isnan(other) or rate == other else f" ({rate / other:.1f}x)")
            axes.text(rate, place, text, va="center", fontsize=8)
        axes.set(xlabel="Images per second", title=f"{STAGES.get(str(stage), stage)}: {size}, {batch:.0f} images",
                 xlim=(0, 1.5 * rows["images_per_second"].max()))  # fmt: skip
    devices = ", ".join(sorted(data["device"].dropna().unique()))
    caption = (
        "Whole steps on data that is already on the device, all contenders of a case in turns in one process"
        + (f", on {devices}" if devices else "")
        + ". In brackets: how many times the baseline (grey)."
    )
    return Picture("step_rates", "Whole steps against a baseline", caption, figure, data, wide=columns > 1)


def scaling_efficiency(cells: pd.DataFrame) -> Picture | None:
    """Weak and strong efficiency over devices; `cells` has the columns benches.EFFICIENCY."""
    cells = cells.dropna(subset="efficiency")  # one rank alone could not be measured
    kinds = [kind for kind in ("weak", "strong") if kind in set(cells["kind"])]
    if not kinds:
        return None
    figure, grid = style.panels(1, len(kinds), 5.8 * len(kinds), 4.1, sharey=True)
    for axes, kind in zip(grid[0], kinds, strict=True):
        ends, part = [], cells[cells["kind"] == kind]
        lines = part.sort_values("devices", kind="stable").groupby([*COMPARED, "batch"], dropna=False)
        apart = [name for name in COMPARED[1:-1] if name != "size" and several(part, name)]
        for number, ((strategy, _, size, *_, engine, batch), line) in enumerate(lines):
            colour, last = style.hue(str(strategy)), line.iloc[-1]
            axes.plot(line["devices"], line["efficiency"], style.marker(str(size)), color=colour, mec="white", mew=0.8,
                      linestyle=("-", "--", ":", "-.")[number % 4])  # fmt: skip
            more = [told_setting(name, last[name]) for name in apart]
            text = ", ".join(
                [f"{style.strategy_name(str(strategy))} {size}", *more, str(engine), f"{batch:.0f} images"]
            )
            ends.append((float(last["devices"]), float(last["efficiency"]), text, colour))
        devices = sorted(part["devices"].unique())
        axes.axhline(1.0, color=style.MUTED, linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(devices, [f"{number:.0f}" for number in devices])
        axes.minorticks_off()
        what = "a batch a device" if kind == "weak" else "one batch over all"
        axes.set(xlabel="Devices", title=f"{kind.capitalize()}: {what}", ylim=(0, max(1.1, cells["efficiency"].max())))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        style.label_ends(axes, ends)
    grid[0][0].set_ylabel("Efficiency")
    caption = (
        "Images per second and device, over those of the fewest devices: at 100 % (dotted) twice the devices do twice "
        "the work. Weak: the batch grows with the devices; strong: the batch stays as it is, so each gets less of it."
    )
    return Picture("efficiency", "Efficiency over devices", caption, figure, cells, wide=len(kinds) > 1)
