"""One look for every figure: a hue a strategy, a marker a size, files whose bytes depend on the data alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from scaling.files import atomic_write

# Okabe and Ito (2008): told apart with every common colour blindness. The control is grey.
HUES = {"ar": "#0072B2", "mae": "#D55E00", "supervised": "#009E73", "scratch": "#6B7280"}
SPARE_HUES = ("#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#000000")
MARKERS = {"pico": "o", "nano": "s", "micro": "^", "tiny": "D", "small": "v", "base": "P", "large": "X", "huge": "*"}
SPARE_MARKERS = ("p", "h", "<", ">", "d", "8")
STRATEGY_NAMES = {
    "ar": "Autoregressive",
    "mae": "Masked (MAE)",
    "supervised": "Supervised",
    "scratch": "Scratch (control)",
}
LINES = {"mamba": "-", "vit": (0, (4, 2))}
INK, MUTED, GRID = "#1F2933", "#616E7C", "#E4E7EB"

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#9AA5B1",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "path.simplify": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "armscale",
}
RASTERIZE_ABOVE = 500
"""Points; a vector file of more points is slow to open."""


@dataclass(frozen=True)
class Picture:
    """A drawn figure, the numbers in it, and how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure
    data: pd.DataFrame
    wide: bool = False

    def save(self, folder: Path) -> None:
        """Writes <name>.png, .svg and .csv; the same picture gives the same bytes."""
        for kind, content in (("png", self._render("png", {"Software": None})), ("svg", self.svg)):
            with atomic_write(folder / f"{self.name}.{kind}") as file:
                file.write(content)
        with atomic_write(folder / f"{self.name}.csv", "w") as file:
            self.data.to_csv(file, index=False, lineterminator="\n")

    @cached_property
    def svg(self) -> bytes:
        """The picture as an svg file."""
        return self._render("svg", {"Date": None, "Creator": None})

    def _render(self, kind: str, metadata: dict[str, None]) -> bytes:
        """The bytes of a file, free of what `metadata` names: dates and versions.

        The layout is settled once, before the first file: it costs as much as all the drawing.
        """
        buffer = io.BytesIO()
        with drawing():
            layout = self.figure.get_layout_engine()
            if layout is not None:
                layout.execute(self.figure)
                self.figure.set_layout_engine(None)
            self.figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
        return buffer.getvalue()


@contextmanager
def drawing() -> Iterator[None]:
    """Our style for everything drawn inside, whatever the caller's matplotlib is set to."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def panels(
    rows: int, columns: int, width: float, height: float, sharey: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """A figure and its axes; width and height in inches (96 px on the page). Call it inside `drawing`."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1, wspace=0.03, hspace=0.05)
    figure = Figure(figsize=(width, height), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    return figure, [list(row) for row in axes]


def hue(strategy: str) -> str:
    """The colour of a strategy (with or without ", encoder"); unknown ones get a spare, the same on every machine."""
    strategy = strategy.split(",")[0]
    return HUES.get(strategy) or SPARE_HUES[sum(strategy.encode()) % len(SPARE_HUES)]


def marker(size: str) -> str:
    """The marker of a size."""
    return MARKERS.get(size) or SPARE_MARKERS[sum(size.encode()) % len(SPARE_MARKERS)]


def scatter(axes: Axes, x: pd.Series, y: pd.Series, sizes: pd.Series | None, colour: str, hollow: bool = False) -> None:
    """One point a row in one hue, with the marker of its size where sizes are known; many points as a bitmap."""
    kinds = pd.Series("", x.index) if sizes is None else sizes.astype(str)
    face = {"mfc": "none", "mec": colour} if hollow else {"mfc": colour, "mec": "white", "mew": 0.6}
    for size in kinds.unique():
        here = kinds == size
        axes.plot(x[here], y[here], marker(size) if size else "o", ls="none", markersize=6, **face,
                  rasterized=len(x) > RASTERIZE_ABOVE)  # fmt: skip


def shade(colour: str, position: float) -> tuple[float, ...]:
    """`colour` from light (position 0) to full (position 1): sizes within one hue."""
    weight = 0.4 + 0.6 * position
    return tuple(1 - weight * (1 - channel) for channel in to_rgb(colour))


def strategy_name(strategy: str) -> str:
    """The name people read; of "ar, vit", a strategy with its encoder, too."""
    name, comma, encoder = strategy.partition(",")
    return STRATEGY_NAMES.get(name, name) + comma + encoder


def strategy_order(strategies: Iterable[str]) -> list[str]:
    """Ours first, in the order of the glossary, then the rest by name."""
    known = list(STRATEGY_NAMES)

    def place(name: str) -> tuple[int, str]:
        plain = name.split(",")[0]
        return (known.index(plain) if plain in known else len(known), name)

    return sorted(set(strategies), key=place)


def size_order(runs: pd.DataFrame) -> list[str]:
    """Sizes of these runs from small to large: by parameters, then by place in the ladder."""
    ladder = list(MARKERS)
    parameters = runs.groupby("size")["parameters"].median()
    return sorted(
        parameters.index,
        key=lambda size: (
            ladder.index(size) if size in ladder else len(ladder),
            float(np.nan_to_num(parameters[size])),
            size,
        ),
    )


def reading_order(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`table` sorted by these columns: sizes from small to large, strategies as in the glossary, others as they are."""
    ladder = list(MARKERS)

    def places(column: pd.Series) -> pd.Series:
        if column.name == "size":
            return column.map(lambda size: ladder.index(size) if size in ladder else len(ladder))
        return column.map(strategy_order(column.dropna()).index) if column.name == "strategy" else column

    return table.sort_values(list(by), key=places, kind="stable", ignore_index=True)


def compact(value: float, _position: object = None) -> str:
    """1.2e6 as 1.2M."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * limit:  # what three digits round up to it
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def percent(value: float, _position: object = None) -> str:
    """0.725 as 72.5%."""
    return f"{100 * value:.4g}%"


def log_axis(axes: Axes, which: str, values: Iterable[float], formatter: Any = compact) -> None:
    """Makes axis `which` (x or y) logarithmic with readable ticks: a narrower range gets more of them."""
    numbers = np.asarray([value for value in values if 0 < value < np.inf], dtype=float)
    decades = float(np.ptp(np.log10(numbers))) if len(numbers) else 1.0
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
    if decades < 0.05 and len(numbers):  # as good as one value: no range of its own
        limits = (numbers.min() / 1.5, numbers.max() * 1.5)
        axes.set_xlim(limits) if which == "x" else axes.set_ylim(limits)
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(formatter))
    if decades < 0.35:  # may hold one of the digits below, for which LogLocator puts more ticks than there is room for
        axis.set_major_locator(MaxNLocator(nbins=4))
        return
    steps = ((0.6, (1, 1.5, 2, 3, 4, 6, 8)), (1.0, (1, 2, 3, 5)), (1.8, (1, 2, 5)), (2.5, (1, 3)), (np.inf, (1,)))
    digits = next(digits for widest, digits in steps if decades < widest)
    axis.set_major_locator(LogLocator(subs=digits, numticks=12))


def scientific(value: float, _position: object = None) -> str:
    """3e15 as 3×10¹⁵."""
    digits, power = f"{value:.1e}".split("e")
    digits = digits.removesuffix(".0")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if digits == "1" else f"{digits}×10{raised}"


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, Any]], gap: float = 0.06) -> None:
    """Names lines at their right end, (x, y, text, colour) each, moved apart so that no two overlap."""
    if not ends:
        return
    axes.set_ylim(axes.get_ylim())
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = np.array([to_axes.transform((x, y))[1] for x, y, _, _ in ends])
    order = np.lexsort((-np.arange(len(ends)), heights))
    placed = heights[order].copy()
    for _ in range(200):
        overlap = gap - np.diff(placed)
        if not (overlap > 1e-6).any():
            break
        for index in np.flatnonzero(overlap > 0):
            placed[index] -= overlap[index] / 2
            placed[index + 1] += overlap[index] / 2
    placed += max(0.0, -placed.min()) - max(0.0, placed.max() - 1.0)
    for height, index in zip(placed, order, strict=True):
        _, _, text, colour = ends[index]
        axes.annotate(
            text,
            (1.01, height),
            xycoords="axes fraction",
            color=colour,
            va="center",
            fontsize=8.5,
            annotation_clip=False,
        )


def size_legend(axes: Axes, sizes: Sequence[str], above_title: bool = False) -> None:
    """Markers of the sizes, in grey, above the axes."""
    handles = [
        Line2D([], [], color=MUTED, marker=marker(size), linestyle="none", markersize=6, label=size) for size in sizes
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.1 if above_title else 1.0),
        ncols=8,
        handletextpad=0.1,
        columnspacing=1.0,
        borderaxespad=0.2,
    )
