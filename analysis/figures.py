"""The pictures of a study: accuracy against size and compute, speed against size, loss curves."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from analysis import style
from analysis.style import Picture
from analysis.tables import Tables
from analysis.throughput import STEADY_RULE, pareto_front, run_rates

CURVES_A_CELL = 30
"""Curves drawn of one strategy, encoder, size and stage; of more, every so manieth."""
CURVE_POINTS = 300
"""Points drawn of one loss curve; longer curves are thinned evenly."""

ACCURACY_AXES = {
    "parameters": ("parameters", "Top-1 accuracy against model size", "Parameters", style.compact),
    "flops": ("total_train_flops", "Top-1 accuracy against training compute", "Training FLOPs, all stages together",
              style.scientific),
}  # fmt: skip
SPEED = (
    ("images_per_second", "Images per second"),
    ("tokens_per_second", "Tokens per second"),
    ("step_seconds", "Seconds per optimiser step"),
)
PROTOCOL_NAMES = {"finetune": "after finetuning", "linear_probe": "linear probe", "knn": "k nearest neighbours"}


def accuracies(tables: Tables) -> pd.DataFrame:
    """Completed runs with an accuracy, and `half_width`: 95 % of the sampling of the finite test split.

    half_width is 1.96 sqrt(p (1 - p) / images) over the images of the run's last evaluation under its protocol.
    """
    runs = tables.completed
    runs = runs[runs["top1"].notna()]
    last = tables.evaluations.sort_values("step", kind="stable").drop_duplicates(
        ["study", "run", "protocol"], keep="last"
    )
    tested = last[["study", "run", "protocol", "images", "resolution"]].rename(columns={"images": "test_images"})
    runs = runs.merge(tested, on=["study", "run", "protocol"], how="left")
    runs["half_width"] = 1.96 * np.sqrt(runs["top1"] * (1 - runs["top1"]) / runs["test_images"])
    columns = ["study", "run", "strategy", "encoder", "size", "seed", "protocol", "resolution", "parameters",
               "total_train_flops", "total_images_seen", "top1", "half_width", "test_images"]  # fmt: skip
    return runs[columns].reset_index(drop=True)


def accuracy(tables: Tables, against: str) -> Picture | None:
    """Top-1 against `against` (parameters or flops), a panel for each protocol; None without any accuracy."""
    column, title, label, formatter = ACCURACY_AXES[against]
    data = accuracies(tables)
    data = data[data[column] > 0]
    if data.empty:
        return None
    protocols = sorted(data["protocol"].fillna("unknown").unique())
    figure, axes = style.panels(1, len(protocols), 5.7 * len(protocols), 4.3)
    sizes = style.size_order(data)
    for panel, protocol in zip(axes[0], protocols, strict=True):
        part = data[data["protocol"].fillna("unknown") == protocol]
        _accuracy_panel(panel, part, column, sizes)
        panel.set_xlabel(label)
        panel.set_ylabel(f"Top-1 accuracy, {PROTOCOL_NAMES.get(protocol, protocol)}")
        style.log_axis(panel, "x", part[column], formatter)
    reading = {
        "parameters": "Higher is better.",
        "flops": "Higher is better; of two points at one height, the one further left got there with less computation.",
    }
    caption = (
        "Each line is one strategy, each marker one model size"
        + (", averaged over seeds (faint dots: single seeds)" if data["seed"].nunique() > 1 else "")
        + f". {reading[against]} Bars show the 95 % uncertainty that comes from the finite test split alone; "
        + "they say nothing about how much another random seed would change."
    )
    return Picture(f"accuracy_{against}", title, caption, figure, data, wide=len(protocols) > 1)


def _accuracy_panel(axes: Axes, data: pd.DataFrame, column: str, sizes: list[str]) -> None:
    ends = []
    several = data["encoder"].nunique() > 1
    for strategy in style.strategy_order(data["strategy"]):
        for encoder, runs in data[data["strategy"] == strategy].groupby("encoder", dropna=False):
            cells = runs.groupby("size")[[column, "top1", "half_width"]].mean().sort_values(column)
            colour = style.hue(strategy)
            axes.plot(
                cells[column], cells["top1"], color=colour, linestyle=style.LINES.get(str(encoder), ":"), zorder=2
            )
            bars = cells["half_width"].fillna(0)
            axes.errorbar(cells[column], cells["top1"], bars, fmt="none", ecolor=colour, elinewidth=1, alpha=0.6)
            for size, cell in cells.iterrows():
                axes.plot(
                    cell[column], cell["top1"], style.marker(str(size)), color=colour, mec="white", mew=0.8, zorder=3
                )
            if len(runs) > len(cells):
                axes.plot(runs[column], runs["top1"], ".", color=colour, alpha=0.35, markersize=4, zorder=2,
                          rasterized=len(runs) > style.RASTERIZE_ABOVE)  # fmt: skip
            name = style.strategy_name(strategy) + (f", {encoder}" if several else "")
            ends.append((float(cells[column].iloc[-1]), float(cells["top1"].iloc[-1]), name, colour))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=_percent_digits(data["top1"])))
    axes.margins(x=0.06, y=0.08)
    style.label_ends(axes, ends)
    style.size_legend(axes, sizes)


def _percent_digits(values: pd.Series) -> int:
    return 1 if values.max() - values.min() < 0.03 else 0


def speed(tables: Tables) -> Picture | None:
    """Images and tokens a second and the time of a step against parameters, a row for each stage."""
    runs = tables.runs[["study", "run", "strategy", "encoder", "size", "stage", "seed", "parameters", "global_batch"]]
    data = runs.merge(run_rates(tables.metrics), on=["study", "run"])
    data = data[(data["images_per_second"] > 0) & (data["parameters"] > 0)].reset_index(drop=True)
    if data.empty:
        return None
    stages = sorted(data["stage"].unique(), key=lambda stage: ("pretrain", "finetune", "probe", stage).index(stage))
    figure, axes = style.panels(len(stages), 3, 11.6, 3.5 * len(stages))
    for row, stage in zip(axes, stages, strict=True):
        part = data[data["stage"] == stage]
        for panel, (column, label) in zip(row, SPEED, strict=True):
            _speed_panel(panel, part.dropna(subset=column), column, named=column == SPEED[-1][0])
            panel.set_title(
                {"pretrain": "Pretraining", "finetune": "Finetuning"}.get(stage, stage) + f": {label.lower()}"
            )
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
    ends = []
    for strategy in style.strategy_order(data["strategy"]):
        for encoder, runs in data[data["strategy"] == strategy].groupby("encoder", dropna=False):
            cells = runs.groupby("size")[["parameters", column]].median().sort_values("parameters")
            colour = style.hue(strategy)
            axes.plot(
                cells["parameters"], cells[column], color=colour, linestyle=style.LINES.get(str(encoder), ":"), lw=1.4
            )
            for size, cell in cells.iterrows():
                axes.plot(cell["parameters"], cell[column], style.marker(str(size)), color=colour, mec="white", mew=0.8)
            ends.append((float(cells["parameters"].iloc[-1]), float(cells[column].iloc[-1]),
                         style.strategy_name(strategy), colour))  # fmt: skip
    if data.empty:
        return
    style.log_axis(axes, "y", data[column])
    axes.margins(x=0.08, y=0.1)
    if named:
        style.label_ends(axes, ends, gap=0.075)


def cost(tables: Tables) -> Picture | None:
    """Top-1 against device hours, ancestors' included, with the Pareto front."""
    runs = tables.completed
    columns = ["study", "run", "strategy", "encoder", "size", "seed", "protocol", "total_gpu_seconds", "top1"]
    data = runs.loc[runs["top1"].notna() & (runs["total_gpu_seconds"] > 0), columns].copy()
    if data.empty:
        return None
    data["hours"] = data.pop("total_gpu_seconds") / 3600
    front = pareto_front(data, "hours", "top1")
    data["on_front"] = data["run"].isin(front["run"])
    figure, grid = style.panels(1, 1, 5.7, 4.3)
    axes, ends = grid[0][0], []
    axes.step(front["hours"], front["top1"], where="post", color=style.MUTED, linewidth=1, linestyle=":")
    for strategy in style.strategy_order(data["strategy"]):
        part, colour = data[data["strategy"] == strategy].sort_values("hours"), style.hue(strategy)
        for size, runs_of_size in part.groupby("size"):
            places = (runs_of_size["hours"], runs_of_size["top1"])
            axes.plot(*places, style.marker(str(size)), color=colour, mec="white", mew=0.8,
                      rasterized=len(data) > style.RASTERIZE_ABOVE)  # fmt: skip
        ends.append(
            (float(part["hours"].iloc[-1]), float(part["top1"].iloc[-1]), style.strategy_name(strategy), colour)
        )
    style.log_axis(axes, "x", data["hours"], lambda value, _: f"{value:.3g}")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=_percent_digits(data["top1"])))
    axes.margins(x=0.06, y=0.08)
    axes.set(xlabel="Device hours, all stages together", ylabel="Top-1 accuracy")
    style.label_ends(axes, ends)
    style.size_legend(axes, style.size_order(runs))
    caption = (
        "One marker a run. The dotted line joins the runs that no other beats in both time and accuracy. Times are as "
        "observed, with whatever else the machines were doing."
    )
    return Picture("cost", "Top-1 accuracy against device hours", caption, figure, data)


def loss_curves(tables: Tables, pretraining: bool) -> Picture | None:
    """Training loss against images seen: a panel for each strategy.

    Finetuning minimises one classification loss everywhere, so its panels share the vertical axis. Pretraining losses
    of different objectives are different quantities: each panel has an axis of its own.
    """
    runs = tables.runs[["study", "run", "strategy", "encoder", "size", "seed", "parameters"]]
    metrics = tables.metrics.dropna(subset=["loss", "images_seen"])
    metrics = metrics[(metrics["stage"] == "pretrain") == pretraining]
    metrics = metrics.merge(_shown_curves(tables.runs), on=["study", "run"])
    place = metrics.groupby(["study", "run"]).cumcount()
    every = (metrics.groupby(["study", "run"])["step"].transform("size") / CURVE_POINTS).apply(math.ceil).clip(lower=1)
    data = metrics.loc[place % every == 0, ["study", "run", "step", "images_seen", "loss"]].merge(
        runs, on=["study", "run"]
    )
    if data.empty:
        return None
    strategies = style.strategy_order(data["strategy"])
    width = 11.6 if len(strategies) > 2 else 5.8 * len(strategies)
    figure, axes = style.panels(1, len(strategies), width, 3.9, sharey=not pretraining)
    for panel, strategy in zip(axes[0], strategies, strict=True):
        _loss_panel(panel, data[data["strategy"] == strategy], style.size_order(runs))
        panel.set_title(style.strategy_name(strategy), color=style.hue(strategy))
        panel.set_xlabel("Images seen")
    axes[0][0].set_ylabel("Pretraining loss, own unit each" if pretraining else "Classification loss while training")
    name, title = ("loss_pretraining", "Loss during pretraining") if pretraining else (
        "loss_finetuning", "Loss during finetuning and supervised training")  # fmt: skip
    caption = (
        f"One curve a run (at most {CURVES_A_CELL} of one kind); darker is larger. Lower is better within a panel. "
        + (
            "Each panel has its own objective and so its own unit: heights in different panels must not be compared."
            if pretraining
            else "All panels show the same classification loss on the same axis. Not a test result."
        )
    )
    return Picture(name, title, caption, figure, data, wide=True)


def _shown_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """study and run of those whose curves are drawn: all, unless a cell has too many to see."""
    cells = runs.groupby(["study", "strategy", "encoder", "size", "stage"], dropna=False)["run"]
    every = (cells.transform("size") / CURVES_A_CELL).apply(math.ceil)
    return runs.loc[cells.cumcount() % every == 0, ["study", "run"]]


def _loss_panel(axes: Axes, data: pd.DataFrame, sizes: list[str]) -> None:
    present = [size for size in sizes if size in set(data["size"])]
    ends = []
    crowded = len(data) > 50 * style.RASTERIZE_ABOVE
    for size in present:
        part = data[data["size"] == size]
        position = present.index(size) / max(1, len(present) - 1)
        colour = style.shade(style.hue(str(part["strategy"].iloc[0])), position)
        curves = list(part.groupby(["study", "run"]))
        for _, curve in curves:
            mark = "." if len(curve) < 3 else None
            axes.plot(curve["images_seen"], curve["loss"], color=colour, lw=1.3, marker=mark, rasterized=crowded)
        longest = max((curve for _, curve in curves), key=len)
        ends.append((float(longest["images_seen"].iloc[-1]), float(longest["loss"].iloc[-1]), size, colour))
    axes.margins(x=0.03)
    axes.xaxis.set_major_formatter(FuncFormatter(style.compact))
    axes.locator_params(axis="x", nbins=5)
    style.label_ends(axes, ends)


def study_pictures(tables: Tables) -> list[Picture]:
    """Every picture that these tables allow, in the order of the page."""
    with style.drawing():
        drawn = [
            accuracy(tables, "parameters"),
            accuracy(tables, "flops"),
            speed(tables),
            loss_curves(tables, pretraining=True),
            loss_curves(tables, pretraining=False),
            cost(tables),
        ]
    return [picture for picture in drawn if picture is not None]
