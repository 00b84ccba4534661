"""Pictures of laws: solid where fitted and dashed beyond, with a band; held-out points hollow; residuals; exponents."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import style
from analysis.figures_planes import along, finetuned
from analysis.fit import Fit, fit_law
from analysis.laws import LAWS
from analysis.style import Picture
from analysis.tables import Tables
from scaling.errors import UserError

VARIABLES = {
    "parameters": ("parameters", "parameters"),
    "flops": ("total_train_flops", "training FLOPs"),
    "images": ("total_images_seen", "images seen"),
}
FORMATS = {"flops": style.scientific}
SLICES = {
    "parameters": " Of several lengths of training the longest of each size is shown.",
    "images": " Of several sizes the largest is shown.",
}
BEYOND = 3.0
"""How far the report draws a law beyond its largest run: a factor, small on purpose."""


def study_fits(tables: Tables, column: str) -> tuple[dict[str, Fit], dict[str, str]]:
    """Power laws of the finetuned error over `column`, by arm, and why others have none."""
    runs = along(finetuned(tables), column)
    fits: dict[str, Fit] = {}
    refused: dict[str, str] = {}
    for label, part in runs.groupby("label"):
        try:
            fits[str(label)] = fit_law(part, "power", column, "top1_error", delta=float("inf"))
        except UserError as error:
            refused[str(label)] = f"{error.field} {error.value}, needs {error.valid}"
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
        fit, colour = fits[name], style.hue(name)
        fit.plot(main, colour, BEYOND)
        points = fit.points.copy()
        points["law"] = np.exp(LAWS[fit.law].curve(fit.theta, np.log(points[[column]].to_numpy()))[0])
        points["residual"] = points[fit.y] / points["law"] - 1
        style.scatter(residuals, points[column], 100 * points["residual"], points["size"], colour)
        edge = float(points[column].max()) * BEYOND
        ends.append((edge, fit.predict({column: [edge]})["y"].item(), style.strategy_name(name), colour))
        rows.append(points.assign(strategy=name))
    data = pd.concat(rows, ignore_index=True)
    spread = data["top1_error"]
    main.set_ylim(0.75 * min(spread.min(), *(end[1] for end in ends)), 1.25 * spread.max())
    formatter = FORMATS.get(against, style.compact)
    style.log_axis(main, "x", [data[column].min(), data[column].max() * BEYOND], formatter)
    style.log_axis(main, "y", spread, style.percent)
    style.log_axis(residuals, "x", data[column], formatter)
    style.label_ends(main, ends)
    style.size_legend(residuals, list(data.groupby("size")[column].median().sort_values().index), above_title=True)
    residuals.axhline(0, color=style.MUTED, linewidth=0.8)
    main.set(
        xlabel=label[0].upper() + label[1:], ylabel="Top-1 error after finetuning", title="Error and its power laws"
    )
    residuals.set(
        xlabel=main.get_xlabel(), ylabel="Error above the law, per cent of it", title="What the laws leave over"
    )
    caption = (
        "Solid: the power law error = b x^c where it was fitted; dashed: beyond that, where nothing was measured. "
        "Shaded: 95 % interval of the law. Each marker is a run, its shape the size. Right: how far each run lies from "
        "its law; a bend there means that the law does not hold."
        + SLICES.get(against, "")
        + (" Provisional: runs of this study are missing." if provisional else "")
    )
    return Picture(f"law_{against}", f"Power laws of the error over {label}", caption, figure, data, wide=True)
