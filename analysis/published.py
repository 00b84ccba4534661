"""Numbers that others published, to lay over our own: never in a fit, always marked, each with source and protocol."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from scaling.errors import UserError

SHIPPED = Path(__file__).resolve().parent / "published.csv"
"""ImageNet-1K top-1 of ARM and its peers, as read in the paper's abstract or the official repositories."""
COLUMNS = ("model", "strategy", "parameters", "top1", "source", "protocol")


def read_published(path: Path = SHIPPED) -> pd.DataFrame:
    """A csv with the columns of COLUMNS: top1 a fraction, source and protocol in words; none may be empty."""
    if not path.is_file():
        raise UserError("published", str(path), f"a csv file with the columns {', '.join(COLUMNS)}")
    table = pd.read_csv(path)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UserError("published", str(path), f"the columns {', '.join(COLUMNS)}", why=f"it has no {missing[0]}")
    empty = [name for name in COLUMNS if table[name].isna().any()]
    if empty:
        raise UserError("published", str(path), "a value in every row", why=f"{empty[0]} has gaps")
    if not table["top1"].between(0, 1).all():
        raise UserError("published", float(table["top1"].max()), "top1 as a fraction from 0 to 1")
    return table


def overlay(axes: Axes, table: pd.DataFrame) -> None:
    """Hollow diamonds with the model's name: published, not measured here. Names of neighbours stand one above another.

    Call it before the axes' limits are settled; a name is put down where it will not run over the one below it.
    """
    ordered = table.sort_values("top1", kind="stable")
    gap = 0.035 * max(float(np.ptp(ordered["top1"])), 0.05)
    placed: list[tuple[float, float]] = []
    columns = [ordered[name].to_list() for name in ("model", "strategy", "parameters", "top1")]
    for model, strategy, parameters, top1 in zip(*columns, strict=True):
        colour, x = style.hue(str(strategy)), math.log10(parameters)
        near = [height for place, height in placed if abs(place - x) < 0.6]
        height = max([top1, *(other + gap for other in near)])
        placed.append((x, height))
        axes.plot([parameters], [top1], "D", mfc="none", mec=colour, mew=1.3, markersize=6.5, zorder=1)
        axes.annotate(model, (parameters, top1), xytext=(parameters * 1.12, height), textcoords="data", va="center",
                      fontsize=7, color=colour, annotation_clip=False)  # fmt: skip
