"""Pictures of two variables at once: iso-FLOP panels, and contours of the fitted L(N, D)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from analysis import style
from analysis.arms import labels
from analysis.fit import Fit, fit_law
from analysis.isoflop import SIZES_A_BUDGET, budgets, parabolas
from analysis.laws import LAWS
from analysis.style import Picture
from analysis.tables import Tables
from analysis.variants import without_variants
from scaling.errors import UserError

N, D, C, ERROR = "parameters", "total_images_seen", "total_train_flops", "top1_error"
PANELS = 4
"""Strategies side by side in one picture."""


def finetuned(tables: Tables) -> pd.DataFrame:
    """The completed runs with an error after finetuning, and `label`, their arm."""
    runs = without_variants(tables.completed)
    runs = runs[(runs["protocol"] == "finetune") & (runs[ERROR] > 0)]
    return runs.assign(label=labels(runs))


def along(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """The runs through which a curve of the error over one variable may go.

    Over parameters, of several lengths of training the longest of each size; over images, of several sizes the largest
    (of one arm each); over compute, all.
    """
    runs = runs[runs[column] > 0]
    other = {N: (D, [N]), D: (N, [])}.get(column)
    if other is None or runs.empty:
        return runs
    most = runs.groupby(["label", *other[1]])[other[0]].transform("max")
    return runs[runs[other[0]].isna() | (runs[other[0]] >= most)]


def plane_fits(tables: Tables) -> tuple[dict[str, Fit], dict[str, str]]:
    """L(N, D) of the finetuned error for each arm, and why others have none."""
    fits, refused = {}, {}
    runs = finetuned(tables)
    for name, part in runs[(runs[[N, D]] > 0).all(axis=1)].groupby("label"):
        try:
            fits[str(name)] = fit_law(part, "chinchilla", (N, D), ERROR, delta=float("inf"))
        except UserError as error:
            refused[str(name)] = error.why or f"it needs {error.valid}"
    return fits, refused


def isoflop(tables: Tables) -> Picture | None:
    """Error over size for each compute budget, with its parabola; None where no budget has four sizes."""
    runs = finetuned(tables)
    runs = runs[(runs[[N, C]] > 0).all(axis=1)]
    shown = {}
    for name in style.strategy_order(runs["label"]):
        part = runs[runs["label"] == name].copy()
        part["budget"] = budgets(part[C].to_numpy(dtype=float))
        many = part.groupby("budget")[N].transform("nunique") >= SIZES_A_BUDGET
        if many.any():
            shown[name] = part[many]
    if not shown:
        return None
    names = list(shown)[:PANELS]
    figure, grid = style.panels(1, len(names), 11.6 if len(names) > 1 else 5.7, 4.1, sharey=True)
    rows = []
    for axes, name in zip(grid[0], names, strict=True):
        part, found = shown[name], parabolas(shown[name], N, C, ERROR)
        _isoflop_panel(axes, part, found, style.hue(name))
        axes.set_title(style.strategy_name(name), color=style.hue(name))
        best = dict(zip(np.sort(part["budget"].unique()), found["best"], strict=True))
        rows.append(part.assign(best_parameters=part["budget"].map(best)))
    data = pd.concat(rows, ignore_index=True)
    for axes in grid[0]:
        style.log_axis(axes, "x", data[N])
        axes.set_xlabel("Parameters")
    style.log_axis(grid[0][0], "y", data[ERROR], style.percent)
    grid[0][0].set_ylabel("Top-1 error after finetuning")
    caption = (
        "Runs of one compute budget, all stages together, and the parabola through them (log error over log "
        "parameters, approach 2 of Hoffmann et al. 2022); darker is more compute, the label gives the FLOPs. A cross "
        "marks the best size of a budget; a budget without one has its lowest point at the edge of its sizes."
    )
    columns = ["study", "run", "strategy", "encoder", "size", "seed", N, C, ERROR, "budget", "best_parameters"]
    return Picture(
        "isoflop", "Which size is best for a compute budget", caption, figure, data[columns], wide=len(names) > 1
    )


def _isoflop_panel(axes: Axes, part: pd.DataFrame, found: pd.DataFrame, colour: str) -> None:
    for index, budget in enumerate(np.sort(part["budget"].unique())):
        runs, line = part[part["budget"] == budget], found.iloc[index]
        tone = style.shade(colour, (index + 1) / max(2, len(found)))
        axes.plot(runs[N], runs[ERROR], "o", color=tone, mec="white", mew=0.6, markersize=5)
        log_n = np.linspace(np.log(line["low"]), np.log(line["high"]), 60)
        z = log_n - line["centre"]
        curve = np.exp(line["level"] + line["slope"] * z + line["square"] * z**2)
        axes.plot(np.exp(log_n), curve, "-", color=tone, linewidth=1.5)
        if np.isfinite(line["best"]):
            axes.plot([line["best"]], [line["lowest"]], "X", color=style.INK, mec="white", markersize=7)
        end = (float(np.exp(log_n[-1])), float(curve[-1]))
        axes.annotate(style.scientific(line["flops"]), end, xytext=(4, 0), textcoords="offset points", color=tone,
                      fontsize=7.5, va="center", annotation_clip=False)  # fmt: skip
    axes.margins(x=0.12, y=0.08)


def contours(fits: dict[str, Fit]) -> Picture | None:
    """Lines of equal predicted error over size and images, with the runs they rest on."""
    if not fits:
        return None
    names = style.strategy_order(fits)[:PANELS]
    figure, grid = style.panels(1, len(names), 11.6 if len(names) > 1 else 5.7, 4.1, sharey=True)
    points = pd.concat([fits[name].points.assign(label=name) for name in names], ignore_index=True)
    sides = [np.geomspace(points[name].min() / 1.6, points[name].max() * 1.6, 60) for name in (D, N)]
    levels = _levels(fits, sides)
    for axes, name in zip(grid[0], names, strict=True):
        _contour_panel(axes, fits[name], sides, levels, style.hue(name))
        axes.set_title(style.strategy_name(name), color=style.hue(name))
        style.log_axis(axes, "x", sides[0])
        axes.set(xlim=(sides[0][0], sides[0][-1]), ylim=(sides[1][0], sides[1][-1]), xlabel="Images seen, all stages")
    style.log_axis(grid[0][0], "y", sides[1])
    grid[0][0].set_ylabel("Parameters")
    caption = (
        "Lines of equal top-1 error by the fitted law error = E + A/N^alpha + B/D^beta (N parameters, D images; "
        "approach 3 of Hoffmann et al. 2022). Dots are the runs; away from them the lines are extrapolation. Dashed: "
        "the best size for each number of images where the cost of a run grows as N times D."
    )
    data = points.assign(predicted=np.nan)
    for name in names:
        own = data["label"] == name
        places = np.log(points.loc[own, [N, D]].to_numpy(dtype=float))
        data.loc[own, "predicted"] = np.exp(LAWS["chinchilla"].curve(fits[name].theta, places)[0])
    return Picture("contours", "Predicted error over size and images", caption, figure, data, wide=len(names) > 1)


def _levels(fits: dict[str, Fit], sides: Sequence[np.ndarray]) -> np.ndarray:
    """The same levels for every panel, evenly spaced in log over what the laws predict."""
    values = np.concatenate([_surface(fit, sides).ravel() for fit in fits.values()])
    levels = np.geomspace(values.min(), values.max(), 12)[1:-1]
    return np.unique([float(f"{level:.2g}") for level in levels])


def _surface(fit: Fit, sides: Sequence[np.ndarray]) -> np.ndarray:
    log_d, log_n = np.meshgrid(np.log(sides[0]), np.log(sides[1]))
    places = np.stack([log_n.ravel(), log_d.ravel()], axis=1)
    return np.exp(LAWS["chinchilla"].curve(fit.theta, places)[0]).reshape(log_n.shape)


def _contour_panel(axes: Axes, fit: Fit, sides: Sequence[np.ndarray], levels: np.ndarray, colour: str) -> None:
    axes.set(xscale="log", yscale="log")
    drawn = axes.contour(sides[0], sides[1], _surface(fit, sides), levels=levels, colors=[colour], linewidths=1.1)
    axes.clabel(drawn, fmt=FuncFormatter(lambda value, _: f"{100 * value:.2g}%"), fontsize=7.5)
    axes.plot(fit.points[D], fit.points[N], "o", color=style.INK, mec="white", mew=0.6, markersize=4.5,
              rasterized=len(fit.points) > style.RASTERIZE_ABOVE)  # fmt: skip
    _, log_a, log_b, alpha, beta = fit.theta
    if alpha > 0 and beta > 0:  # alpha A / N^alpha = beta B / D^beta
        best = np.exp((np.log(alpha / beta) + log_a - log_b + beta * np.log(sides[0])) / alpha)
        inside = (best >= sides[1][0]) & (best <= sides[1][-1])
        axes.plot(sides[0][inside], best[inside], "--", color=style.MUTED, linewidth=1.2)
