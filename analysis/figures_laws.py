"""Pictures of laws: solid where fitted and dashed beyond, with a band; held-out points hollow; residuals; exponents."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.fit import Fit, fit_law
from analysis.laws import LAWS
from analysis.style import Picture
from analysis.tables import Tables
from scaling.errors import UserError

VARIABLES = {"parameters": ("parameters", "parameters"), "flops": ("total_train_flops", "training FLOPs")}
BEYOND = 3.0
"""How far the report draws a law beyond its largest run: a factor, small on purpose."""


def study_fits(tables: Tables, column: str) -> tuple[dict[str, Fit], dict[str, str]]:
    """Power laws of the finetuned error over `column`, by strategy, and why others have none."""
    runs = tables.completed[tables.completed["protocol"] == "finetune"]
    fits: dict[str, Fit] = {}
    refused: dict[str, str] = {}
    for (strategy, encoder), part in runs.groupby(["strategy", "encoder"]):
        name = str(strategy) if runs["encoder"].nunique() == 1 else f"{strategy}, {encoder}"
        try:
            fits[name] = fit_law(part, "power", column, "top1_error", delta=float("inf"))
        except UserError as error:
            refused[name] = f"{error.field} {error.value}, needs {error.valid}"
    return fits, refused


def laws(fits: dict[str, Fit], against: str, provisional: bool) -> Picture | None:
    """Error against size or compute with its power laws, and the residuals beneath."""
    if not fits:
        return None
    column, label = VARIABLES[against]
    figure, grid = style.panels(1, 2, 11.6, 4.3)
    main, residuals = grid[0]
    ends, rows = [], []
    for name in style.strategy_order(fits):
        fit, colour = fits[name], style.hue(name.split(",")[0])
        draw_fit(main, fit, colour, BEYOND)
        points = fit.points.copy()
        points["law"] = np.exp(LAWS[fit.law].curve(fit.theta, np.log(points[[column]].to_numpy()))[0])
        points["residual"] = points[fit.y] / points["law"] - 1
        residuals.plot(points[column], 100 * points["residual"], "o", color=colour, mec="white", mew=0.6,
                       rasterized=len(points) > style.RASTERIZE_ABOVE)  # fmt: skip
        edge = float(points[column].max()) * BEYOND
        ends.append((edge, fit.predict({column: [edge]})["y"].item(), style.strategy_name(name), colour))
        rows.append(points.assign(strategy=name))
    data = pd.concat(rows, ignore_index=True)
    spread = data["top1_error"]
    main.set_ylim(0.75 * min(spread.min(), *(end[1] for end in ends)), 1.25 * spread.max())
    style.log_axis(main, "x", [data[column].min(), data[column].max() * BEYOND],
                   style.compact if against == "parameters" else style.scientific)  # fmt: skip
    style.log_axis(main, "y", spread, lambda value, _: f"{100 * value:.3g}%")
    style.log_axis(residuals, "x", data[column], style.compact if against == "parameters" else style.scientific)
    style.label_ends(main, ends)
    residuals.axhline(0, color=style.MUTED, linewidth=0.8)
    main.set(
        xlabel=label[0].upper() + label[1:], ylabel="Top-1 error after finetuning", title="Error and its power laws"
    )
    residuals.set(
        xlabel=main.get_xlabel(), ylabel="Error above the law, per cent of it", title="What the laws leave over"
    )
    caption = (
        "Solid: the power law error = b x^c where it was fitted; dashed: beyond that, where nothing was measured. "
        "Shaded: 95 % interval of the law. Right: how far each run lies from its law; a bend there means that the law "
        "does not hold." + (" Provisional: runs of this study are missing." if provisional else "")
    )
    return Picture(f"law_{against}", f"Power laws of the error over {label}", caption, figure, data, wide=True)


def exponents(fits: dict[str, Fit], against: str) -> Picture | None:
    """The exponent of each strategy with its 95 % interval."""
    rows = [
        (name, fit.parameters["c"].value, *fit.parameters["c"].interval_95)
        for name, fit in fits.items()
        if fit.parameters["c"].interval_95
    ]
    if not rows:
        return None
    data = pd.DataFrame(rows, columns=["strategy", "exponent", "low", "high"])
    figure, grid = style.panels(1, 1, 5.7, 0.7 + 0.42 * len(rows))
    axes, order = grid[0][0], style.strategy_order(data["strategy"])
    for name, exponent, low, high in rows:
        height, colour = -order.index(name), style.hue(name.split(",")[0])
        axes.plot([low, high], [height, height], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([exponent], [height], "o", color=colour, mec="white", mew=0.8, markersize=7)
    axes.set_yticks([-index for index in range(len(order))], [style.strategy_name(name) for name in order])
    axes.set_ylim(-len(order) + 0.4, 0.6)
    axes.axvline(0, color=style.MUTED, linewidth=0.8)
    axes.set_xlabel("Exponent c of error = b x^c (further left: faster)")
    caption = (
        "A bar that crosses zero means that the data do not show that larger is better. Bars of two strategies that "
        "overlap may still differ: the table of differences says."
    )
    title = f"Exponents over {VARIABLES[against][1]}"
    return Picture(f"exponents_{against}", title, caption, figure, data)


def draw_fit(axes: Axes, fit: Fit, colour: str, beyond: float = 1.0) -> None:
    """Draws a fit of one variable: points, curve, 95 % band; dashed from the largest fitted x to `beyond` times it."""
    (name,) = fit.x
    fitted = fit.points[fit.points["role"] == "fitted"]
    held = fit.points[fit.points["role"] != "fitted"]
    low, high = float(fitted[name].min()), float(fitted[name].max())
    end = max(high, float(held[name].max()) if len(held) else high) * beyond
    for first, last, line in ((low, high, "-"), (high, end, "--")):
        if last > first:
            curve = fit.predict({name: np.geomspace(first, last, 12)})
            axes.plot(curve[name], curve["y"], line, color=colour, linewidth=1.6)
            if np.isfinite(curve[["low", "high"]].to_numpy()).all():
                axes.fill_between(curve[name], curve["low"], curve["high"], color=colour, alpha=0.1, linewidth=0)
    many = len(fitted) > style.RASTERIZE_ABOVE
    axes.plot(fitted[name], fitted[fit.y], "o", color=colour, mec="white", mew=0.6, markersize=5, rasterized=many)
    axes.plot(held[name], held[fit.y], "o", color=colour, mfc="none", markersize=5.5)
    axes.set(xscale="log", yscale="log", xlabel=name, ylabel=fit.y)
