"""The pictures of a study: accuracy against size and compute, speed against size, loss curves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis import style
from analysis.arms import ARM, labels
from analysis.figures_compare import ranking
from analysis.published import name_models, overlay
from analysis.style import Picture
from analysis.tables import Tables
from analysis.throughput import RUN, STEADY_RULE, pareto_front, run_rates
from analysis.variants import without_variants

CURVES_A_CELL = 30
"""Curves drawn of one strategy, encoder, size and stage; of more, every so manieth."""
LENGTHS_SHOWN = 5
"""Lengths of training drawn of one strategy over parameters or FLOPs: evenly from the shortest to the longest."""
CURVE_POINTS = 300
"""Points drawn of one loss curve; longer curves are thinned evenly."""

ACCURACY_AXES = {
    "parameters": ("parameters", "Top-1 accuracy against model size", "Parameters", style.compact),
    "flops": ("total_train_flops", "Top-1 accuracy against training compute", "Training FLOPs, all stages together",
              style.scientific),
    "images": ("total_images_seen", "Top-1 accuracy against images seen", "Images seen, all stages together",
               style.compact),
}  # fmt: skip
PUBLISHED = (
    " Hollow diamonds are published numbers, not measured here: other recipes and other code, so they show where a "
    "result lies and rank nothing. Sources and protocols stand in the table below."
)
TRADED = ("study", "run", *ARM, "size", "seed", "protocol", "parameters", "top1")
PROTOCOL_NAMES = {"finetune": "after finetuning", "linear_probe": "linear probe", "knn": "k nearest neighbours"}


def accuracies(tables: Tables) -> pd.DataFrame:
    """Completed runs with an accuracy, and `half_width`: 95 % of the sampling of the finite test split.

    Variants of an arm are left out (`analysis.variants`).

    half_width is 1.96 sqrt(p (1 - p) / images) over the images of the run's own last evaluation under its protocol.
    """
    runs = without_variants(tables.completed)
    runs = runs[runs["top1"].notna()]
    last = tables.own_evaluations.sort_values("step", kind="stable").drop_duplicates(
        ["study", "run", "protocol"], keep="last"
    )
    tested = last[["study", "run", "protocol", "images"]].rename(columns={"images": "test_images"})
    runs = runs.merge(tested, on=["study", "run", "protocol"], how="left")
    runs["half_width"] = 1.96 * np.sqrt(runs["top1"] * (1 - runs["top1"]) / runs["test_images"])
    columns = ["study", "run", *ARM, "size", "seed", "protocol", "parameters", "total_train_flops",
               "total_images_seen", "top1", "half_width", "test_images"]  # fmt: skip
    return runs[columns].reset_index(drop=True)


def at_full_length(data: pd.DataFrame) -> pd.DataFrame:
    """Of each arm and size the runs that saw most images: what a table of one number a cell compares."""
    longest = data.groupby(["protocol", *ARM, "size"], dropna=False)["total_images_seen"]
    return data[data["total_images_seen"].isna() | (data["total_images_seen"] >= longest.transform("max"))]


def accuracy(tables: Tables, against: str, published: pd.DataFrame | None = None) -> Picture | None:
    """Top-1 against `against` (parameters, flops or images), a panel for each protocol; None without any accuracy.

    `published` (see analysis.published) is laid over the finetuned accuracies against parameters.
    """
    column, title, label, formatter = ACCURACY_AXES[against]
    data = accuracies(tables)
    data = data[data[column] > 0].assign(label=labels)
    if data.empty or (against == "images" and data.groupby("label")[column].nunique().max() < 2):
        return None
    protocols = sorted(data["protocol"].fillna("unknown").unique())
    wide = len(protocols) > 1 or (published is not None and against == "parameters")
    figure, axes = style.panels(1, len(protocols), max(11.6, 5.7 * len(protocols)) if wide else 5.7, 4.3)
    sizes = style.size_order(data)
    for panel, protocol in zip(axes[0], protocols, strict=True):
        part = data[data["protocol"].fillna("unknown") == protocol]
        shown = published if against == "parameters" and protocol == "finetune" else None
        if shown is not None:
            overlay(panel, shown)
        _accuracy_panel(panel, part, column, sizes)
        panel.set_xlabel(label)
        panel.set_ylabel(f"Top-1 accuracy, {PROTOCOL_NAMES.get(protocol, protocol)}")
        style.log_axis(panel, "x", [*part[column], *(shown["parameters"] if shown is not None else ())], formatter)
        if shown is not None:
            name_models(panel, shown)
    reading = {
        "parameters": "Higher is better.",
        "flops": "Higher is better; of two points at one height, the one further left got there with less computation.",
        "images": "Higher is better; of two points at one height, the one further left got there with fewer images.",
    }
    several = data.groupby(["label", "size"], dropna=False)["total_images_seen"].nunique().max() > 1
    caption = (
        "Each line is one strategy (of one encoder, resolution and data set), each marker one model size"
        + (", averaged over seeds (faint dots: single seeds)" if data["seed"].nunique() > 1 else "")
        + (f", of at most {LENGTHS_SHOWN} lengths of training" if against != "images" and several else "")
        + f". {reading[against]} Bars show the 95 % uncertainty that comes from the finite test split alone; "
        + "they say nothing about how much another random seed would change."
        + (PUBLISHED if published is not None and against == "parameters" else "")
    )
    return Picture(f"accuracy_{against}", title, caption, figure, data, wide=wide)


def _accuracy_panel(axes: Axes, data: pd.DataFrame, column: str, sizes: list[str]) -> None:
    ends = []
    for name in style.strategy_order(data["label"]):
        runs = data[data["label"] == name]
        runs = runs if column == "total_images_seen" else _some_lengths(runs)
        cells = _cells(runs, column)
        colour, dashes = style.hue(name), style.LINES.get(str(runs["encoder"].iloc[0]), ":")
        for _, line in cells.groupby("line"):
            axes.plot(line[column], line["top1"], color=colour, linestyle=dashes, zorder=2)
        bars = cells["half_width"].fillna(0)
        axes.errorbar(cells[column], cells["top1"], bars, fmt="none", ecolor=colour, elinewidth=1, alpha=0.6)
        for size, part in cells.groupby("size"):
            axes.plot(part[column], part["top1"], style.marker(str(size)), ls="none", color=colour, mec="white",
                      mew=0.8, zorder=3)  # fmt: skip
        if len(runs) > len(cells):
            axes.plot(runs[column], runs["top1"], ".", color=colour, alpha=0.35, markersize=4, zorder=2,
                      rasterized=len(runs) > style.RASTERIZE_ABOVE)  # fmt: skip
        ends.append((float(cells[column].iloc[-1]), float(cells["top1"].iloc[-1]), style.strategy_name(name), colour))
    axes.yaxis.set_major_formatter(FuncFormatter(style.percent))
    axes.margins(x=0.06, y=0.08)
    style.label_ends(axes, ends)
    style.size_legend(axes, sizes)


def _lengths(runs: pd.DataFrame) -> pd.Series:
    """The place of each run's images among those of its size: 1 for the shortest."""
    return runs.groupby("size")["total_images_seen"].rank(method="dense").fillna(1)


def _some_lengths(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of at most LENGTHS_SHOWN lengths of training."""
    lengths = _lengths(runs)
    places = np.unique(lengths)
    shown = places[np.unique(np.linspace(0, len(places) - 1, LENGTHS_SHOWN).round().astype(int))]
    return runs[lengths.isin(shown)]


def _cells(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means over seeds of one strategy, left to right; `line` says which of them a line joins.

    A line joins sizes of one length of training (the shortest of each, the next ...), or over images one size.
    """
    length = _lengths(runs)
    line = runs["size"].astype(str) if column == "total_images_seen" else length
    numbers = list(dict.fromkeys([column, "top1", "half_width"]))
    cells = runs.assign(line=line, length=length).groupby(["line", "size", "length"])[numbers].mean()
    return cells.reset_index().sort_values(column, kind="stable")


def cost(tables: Tables) -> Picture | None:
    """Top-1 against device hours, ancestors' included, with the Pareto front; None without any."""
    runs = tables.completed
    data = runs.loc[runs["top1"].notna() & (runs["total_gpu_seconds"] > 0), [*TRADED, "total_gpu_seconds"]].copy()
    if data.empty:
        return None
    data["hours"] = data.pop("total_gpu_seconds") / 3600
    data = data.assign(label=labels)
    caption = (
        "One marker a run. The dotted line joins the runs that no other beats in both time and accuracy. Times are as "
        "observed, with whatever else the machines were doing."
    )
    figure = _trade_off(data, "hours", "hours", "Device hours, all stages together")
    return Picture("cost", "Top-1 accuracy against device hours", caption, figure, data, wide=len(figure.axes) > 1)


def accuracy_speed(tables: Tables) -> Picture | None:
    """Top-1 against the images per second and device of the run's own stage, with the Pareto front; None without any.

    Runs of an engine or device of another kind are other speeds: the csv has both.
    """
    runs = tables.completed
    data = runs.loc[runs["top1"].notna(), [*TRADED, "engine", "device"]]
    data = data.merge(run_rates(tables.metrics)[["study", "run", "images_per_second", "devices"]], on=["study", "run"])
    data["images_per_second_per_device"] = data.pop("images_per_second") / data["devices"]
    data = data[data["images_per_second_per_device"] > 0].reset_index(drop=True)
    if data.empty:
        return None
    data = data.assign(label=labels)
    data["seconds_per_image"] = 1 / data["images_per_second_per_device"]
    caption = (
        f"One marker a run: how fast its last stage trained ({STEADY_RULE}) and how accurate it became. Further right "
        "and higher is better; the dotted line joins the runs that no other beats in both. A pretraining costs nothing "
        "here, as it makes the finished model no slower: what it cost stands in the picture of device hours."
    )
    figure = _trade_off(data, "images_per_second_per_device", "seconds_per_image", "Images per second and device")
    wide = len(figure.axes) > 1
    return Picture("accuracy_speed", "Top-1 accuracy against training speed", caption, figure, data, wide=wide)


def _trade_off(data: pd.DataFrame, x: str, price: str, label: str) -> Figure:
    """Top-1 over `x`, one marker a run, and the Pareto front of little `price` and much top-1, marked in the data.

    A panel for each protocol: what a probe reads off a frozen encoder is no cheaper finetuning.
    """
    data["on_front"] = False
    protocols = sorted(data["protocol"].fillna("unknown").unique())
    figure, grid = style.panels(1, len(protocols), 5.7 * len(protocols), 4.3)
    for axes, protocol in zip(grid[0], protocols, strict=True):
        part = data[data["protocol"].fillna("unknown") == protocol]
        front = pareto_front(part, price, "top1")
        data["on_front"] |= pd.MultiIndex.from_frame(data[RUN]).isin(pd.MultiIndex.from_frame(front[RUN]))
        _trade_off_panel(axes, part, front, x)
        axes.set(xlabel=label, ylabel=f"Top-1 accuracy, {PROTOCOL_NAMES.get(protocol, protocol)}")
    return figure


def _trade_off_panel(axes: Axes, data: pd.DataFrame, front: pd.DataFrame, x: str) -> None:
    ends = []
    axes.step(front[x], front["top1"], where="post", color=style.MUTED, lw=1, linestyle=":")
    for name in style.strategy_order(data["label"]):
        part, colour = data[data["label"] == name].sort_values(x), style.hue(name)
        style.scatter(axes, part[x], part["top1"], part["size"], colour)
        last = part.iloc[-1]
        ends.append((float(last[x]), float(last["top1"]), style.strategy_name(name), colour))
    style.log_axis(axes, "x", data[x])
    axes.yaxis.set_major_formatter(FuncFormatter(style.percent))
    axes.margins(x=0.06, y=0.08)
    style.label_ends(axes, ends)
    style.size_legend(axes, style.size_order(data))


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
    ends = [
        _loss_panel(panel, data[data["strategy"] == strategy], style.size_order(runs))
        for panel, strategy in zip(axes[0], strategies, strict=True)
    ]
    for panel, strategy, own in zip(axes[0], strategies, ends, strict=True):
        style.label_ends(panel, own)  # which settles the limits, so when every panel of a shared axis is drawn
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
    return Picture(name, title, caption, figure, data, wide=len(strategies) > 1)


def _shown_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """study and run of those whose curves are drawn: all, unless a cell has too many to see."""
    cells = runs.groupby(["study", "strategy", "encoder", "size", "stage"], dropna=False)["run"]
    every = (cells.transform("size") / CURVES_A_CELL).apply(math.ceil)
    return runs.loc[cells.cumcount() % every == 0, ["study", "run"]]


def _loss_panel(axes: Axes, data: pd.DataFrame, sizes: list[str]) -> list[tuple[float, float, str, Any]]:
    """Draws the curves; the ends to label, those of the longest curve of each size."""
    present = [size for size in sizes if size in set(data["size"])]
    ends = []
    crowded = len(data) > 50 * style.RASTERIZE_ABOVE
    for size in present:
        part = data[data["size"] == size]
        position = present.index(size) / (len(present) - 1) if len(present) > 1 else 1.0
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
    return ends


def study_pictures(tables: Tables, published: pd.DataFrame | None = None) -> list[Picture]:
    """Every picture that these tables allow, in the order of the page."""
    with style.drawing():
        drawn = [
            accuracy(tables, "parameters", published),
            *(accuracy(tables, against) for against in ("flops", "images")),
            ranking(at_full_length(accuracies(tables))),
            loss_curves(tables, pretraining=True),
            loss_curves(tables, pretraining=False),
            cost(tables),
            accuracy_speed(tables),
        ]
    return [picture for picture in drawn if picture is not None]
