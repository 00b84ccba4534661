"""Numbers that others published, to lay over our own: never in a fit, always marked, each with source and protocol."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from scaling.errors import UserError

SHIPPED = Path(__file__).resolve().parent / "published.csv"
"""ImageNet-1K top-1 of ARM and its peers, as read in the paper's abstract or the official repositories."""
NAME_INCHES, NAME_HEIGHT = 1.0, 0.036
"""The width of the longest name, and the part of the axes' height that a line of them takes."""
COLUMNS = ("model", "strategy", "parameters", "top1", "source", "protocol")


def read_published(path: Path = SHIPPED) -> pd.DataFrame:
    """A csv with the columns of COLUMNS: top1 a fraction, source and protocol in words; none may be empty."""
    if not path.is_file():
        raise UserError("published", str(path), f"imagenet, or a csv file with the columns {', '.join(COLUMNS)}")
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
    """Hollow diamonds: published, not measured here. Before the axes' limits are settled; `name_models` after."""
    for strategy, part in table.groupby("strategy"):
        colour = style.hue(str(strategy))
        axes.plot(part["parameters"], part["top1"], "D", ls="none", mfc="none", mec=colour, mew=1.3, markersize=6.5,
                  zorder=1)  # fmt: skip


def name_models(axes: Axes, table: pd.DataFrame) -> None:
    """The models' names beside their diamonds, those of neighbours one above another: as far apart as the type is high.

    That is a matter of the axes, not of the numbers: our own accuracies may stretch them as far as they like.
    """
    ordered = table.sort_values("top1", kind="stable")
    near = NAME_INCHES / axes.get_window_extent().width * axes.figure.dpi
    to_axes = axes.transData + axes.transAxes.inverted()
    places = to_axes.transform(ordered[["parameters", "top1"]].to_numpy(dtype=float))
    placed: list[tuple[float, float]] = []
    for (x, y), model, strategy in zip(places, ordered["model"], ordered["strategy"], strict=True):
        height = max([y, *(other + NAME_HEIGHT for place, other in placed if abs(place - x) < near)])
        placed.append((x, height))
        axes.annotate(str(model), (x, height), (6, 0), xycoords="axes fraction", textcoords="offset points",
                      va="center", fontsize=7, color=style.hue(str(strategy)), annotation_clip=False)  # fmt: skip
