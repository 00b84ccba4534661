"""Pictures that compare strategies: exponents and their differences, ranks over seeds, rollout, loss to accuracy."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from analysis import style
from analysis.arms import ARM, labels
from analysis.compare import compare_strategies, roll_out
from analysis.figures_laws import VARIABLES
from analysis.figures_planes import ERROR, PANELS, along, finetuned
from analysis.fit import Fit, fit_law
from analysis.laws import LAWS
from analysis.style import Picture
from analysis.tables import Tables
from scaling.errors import UserError


def exponents(fits: dict[str, Fit], differences: pd.DataFrame, against: str) -> Picture | None:
    """The exponent of each strategy with its 95 % interval, and beside it the differences."""
    found = {name: fits[name].parameters["c"] for name in style.strategy_order(fits)}
    rows = [(name, "", c.value, *c.interval_95) for name, c in found.items() if c.interval_95]
    if not rows:
        return None
    ends = ("difference", "low", "high")
    pairs = [
        (str(one), str(two), float(value), float(low), float(high))
        for one, two, value, low, high in differences[["first", "second", *ends]].to_numpy()
    ]
    figure, grid = style.panels(1, 2 if pairs else 1, 11.6 if pairs else 5.7, 1.1 + 0.36 * max(len(rows), len(pairs)))
    left = [(style.strategy_name(name), value, low, high, style.hue(name)) for name, _, value, low, high in rows]
    _bars(grid[0][0], left)
    grid[0][0].set_xlabel("Exponent c of error = b x^c (further left: faster)")
    if pairs:
        right = [
            (f"{style.strategy_name(one)} − {style.strategy_name(two)}", value, low, high, style.INK)
            for one, two, value, low, high in pairs
        ]
        _bars(grid[0][1], right)
        grid[0][1].set_xlabel("Difference of exponents")
    data = pd.DataFrame([*rows, *pairs], columns=["strategy", "minus", "exponent", "low", "high"])
    caption = (
        "Bars: 95 % intervals, with the sizes as the units. A bar on the left that crosses zero means that the data do "
        "not show that larger is better; one on the right, that two strategies may scale alike. Bars of two strategies "
        "that overlap may still differ: the right panel says, paired by seed where both have the same runs."
    )
    title = f"Exponents over {VARIABLES[against][1]}"
    return Picture(f"exponents_{against}", title, caption, figure, data, wide=bool(pairs))


def _bars(axes: Axes, rows: list[tuple[str, float, float, float, str]]) -> None:
    """A dot and an interval a row, from top to bottom; open ends run to the edge with an arrow."""
    finite = [end for _, value, low, high, _ in rows for end in (value, low, high) if np.isfinite(end)] + [0.0]
    margin = 0.06 * (max(finite) - min(finite) or 1.0)
    axes.set_xlim(min(finite) - margin, max(finite) + margin)
    edges = axes.get_xlim()
    for height, (_, value, low, high, colour) in zip(range(0, -len(rows), -1), rows, strict=True):
        ends = np.clip([low, high], *edges)
        axes.plot(ends, [height, height], color=colour, linewidth=2.2, solid_capstyle="butt")
        for end, edge, arrow in ((low, edges[0], "<"), (high, edges[1], ">")):
            if not np.isfinite(end):
                axes.plot([edge], [height], arrow, color=colour, clip_on=False)
        axes.plot([value], [height], "o", color=colour, mec="white", mew=0.8, markersize=7)
    axes.set_yticks([-index for index in range(len(rows))], [row[0] for row in rows])
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.axvline(0, color=style.MUTED, linewidth=0.8)


def differences(tables: Tables, column: str) -> pd.DataFrame:
    """Differences of the power laws' exponents over `column` between every two arms."""
    return compare_strategies(along(finetuned(tables), column), "power", column, ERROR, group="label")


def ranks(data: pd.DataFrame) -> pd.DataFrame:
    """Strategies by mean top-1 within each protocol and size: rank 1 is best.

    `data` is that of figures.accuracies. Columns: protocol, size, parameters, strategy (the arm, see
    analysis.arms), mean, standard_deviation, seeds, rank, and wins: of the seeds that all strategies of the cell have,
    the share in which this one is best (nan with none).
    """
    rows = []
    data = data.assign(label=labels(data))
    for (protocol, size), cell in data.groupby(["protocol", "size"]):
        table = cell.pivot_table(index="seed", columns="label", values="top1", aggfunc="mean")
        wins = table.dropna().idxmax(axis=1).value_counts(normalize=True) if len(table.dropna()) else None
        for name, runs in cell.groupby("label"):
            share = float("nan") if wins is None else float(wins.get(name, 0.0))
            rows.append((protocol, size, runs["parameters"].median(), str(name), runs["top1"].mean(),
                         runs["top1"].std(), runs["seed"].nunique(), share))  # fmt: skip
    columns = ["protocol", "size", "parameters", "strategy", "mean", "standard_deviation", "seeds", "wins"]
    table = pd.DataFrame(rows, columns=columns)
    cells = table.groupby(["protocol", "size"])
    table["rank"] = cells["mean"].rank(ascending=False, method="min")
    of_size = cells["parameters"].transform("median")  # arms of one size differ a little, by encoder and resolution
    order = ["protocol", "of_size", "rank", "strategy"]
    return table.assign(of_size=of_size).sort_values(order, ignore_index=True).drop(columns="of_size")


def ranking(data: pd.DataFrame) -> Picture | None:
    """Every seed of every strategy at each size, best strategy on top; finetuning alone, else the first protocol."""
    table = ranks(data)
    if table.groupby(["protocol", "size"])["strategy"].nunique().max() < 2 if len(table) else True:
        return None
    protocol = "finetune" if "finetune" in set(table["protocol"]) else str(table["protocol"].iloc[0])
    table, data = table[table["protocol"] == protocol], data[data["protocol"] == protocol]
    data = data.assign(label=labels(data))
    sizes = style.size_order(data)[-6:]
    tallest = int(table.groupby("size")["strategy"].nunique().max())
    across = min(3, len(sizes))
    down = -(-len(sizes) // across)
    figure, grid = style.panels(down, across, 11.6 if across > 1 else 5.7, down * (0.9 + 0.34 * tallest))
    places = [axes for row in grid for axes in row]
    for axes, size in zip(places, sizes, strict=False):
        cell = table[table["size"] == size].reset_index(drop=True)
        for height, (name, mean) in enumerate(zip(cell["strategy"], cell["mean"], strict=True)):
            runs = data[(data["size"] == size) & (data["label"] == name)]
            colour = style.hue(str(name))
            axes.plot(runs["top1"], [-height] * len(runs), "o", color=colour, alpha=0.45, mec="none", markersize=6,
                      rasterized=len(runs) > style.RASTERIZE_ABOVE)  # fmt: skip
            axes.plot([mean, mean], [-height - 0.3, -height + 0.3], color=colour, linewidth=2.6)
        axes.set_yticks([-height for height in range(len(cell))], [style.strategy_name(s) for s in cell["strategy"]])
        axes.set_ylim(-tallest + 0.4, 0.6)
        axes.set_title(size)
        axes.xaxis.set_major_formatter(FuncFormatter(style.percent))
        axes.locator_params(axis="x", nbins=4)
    for axes in places[len(sizes) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("Top-1 accuracy")
    caption = (
        "Strategies from best (top) to worst by their mean, for each size. A dot is one seed, the bar the mean; of "
        "several lengths of training, the longest. Where the dots of two strategies mix, their order may be chance."
    )
    return Picture("ranking", "Ranking of the strategies, seed by seed", caption, figure, table, wide=across > 1)


def rollouts(tables: Tables, column: str = "parameters") -> pd.DataFrame:
    """roll_out of the power law over `column` for each arm that has one: its columns and `strategy`, the arm."""
    parts = []
    for name, part in along(finetuned(tables), column).groupby("label"):
        with contextlib.suppress(UserError):  # study_fits says why
            parts.append(roll_out(part, "power", column, ERROR, delta=float("inf")).assign(strategy=str(name)))
    kept = [part for part in parts if len(part)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def rollout(tables: Tables, rolled: pd.DataFrame) -> Picture | None:
    """Each strategy's law fitted without its largest size, and where that size then lies."""
    if rolled.empty:
        return None
    names, runs = style.strategy_order(rolled["strategy"])[:PANELS], along(finetuned(tables), "parameters")
    figure, grid = style.panels(1, len(names), 11.6 if len(names) > 1 else 5.7, 3.9, sharey=True)
    for axes, name in zip(grid[0], names, strict=True):
        part = runs[runs["label"] == name]
        fit = fit_law(part, "power", "parameters", ERROR, delta=float("inf"),
                      hold_out=f"parameters >= {float(part['parameters'].max())!r}")  # fmt: skip
        fit.plot(axes, style.hue(name), beyond=1.2)
        axes.set_title(style.strategy_name(name), color=style.hue(name))
        style.log_axis(axes, "x", part["parameters"])
        axes.set(xlabel="Parameters", ylabel="")
    style.log_axis(grid[0][0], "y", runs[ERROR], style.percent)
    grid[0][0].set_ylabel("Top-1 error after finetuning")
    caption = (
        "Each power law was fitted to the filled points; the hollow ones, of the largest size, were kept from it. "
        "Dashed: what the law says of them, with its 95 % interval. Hollow points outside the band mean that the law "
        "could not have been trusted for the next size. The csv has every shorter range too."
    )
    return Picture(
        "rollout", "Would the smaller sizes have predicted the largest?", caption, figure, rolled, wide=len(names) > 1
    )


def loss_to_accuracy(tables: Tables) -> Picture | None:
    """Top-1 after finetuning against the pretraining loss of the parent, a panel for each arm."""
    runs = tables.completed
    parents = runs[["study", "run", "pretrain_loss"]].rename(columns={"run": "parent", "pretrain_loss": "loss_before"})
    columns = ["study", "run", "parent", *ARM, "size", "seed", "protocol", "top1", "parameters", "total_images_seen"]
    data = runs.loc[(runs["protocol"] == "finetune") & runs["top1"].notna(), columns]
    data = data.merge(parents, on=["study", "parent"]).dropna(subset="loss_before")
    data["label"] = labels(data)
    names = [name for name in style.strategy_order(data["label"]) if (data["label"] == name).sum() > 1][:PANELS]
    if not names:
        return None
    figure, grid = style.panels(1, len(names), 11.6 if len(names) > 1 else 5.7, 4.1, sharey=True)
    for axes, name in zip(grid[0], names, strict=True):
        part, colour = data[data["label"] == name], style.hue(name)
        style.scatter(axes, part["loss_before"], part["top1"], part["size"], colour)
        means = part.groupby(["size", "total_images_seen"], dropna=False)[["loss_before", "top1"]].mean()
        try:
            fit = fit_law(means, "sigmoid", "loss_before", "top1", delta=float("inf"))
        except UserError:
            axes.set_title(f"{style.strategy_name(name)}: too few sizes for a curve", color=colour)
        else:
            places = np.linspace(part["loss_before"].min(), part["loss_before"].max(), 50)
            axes.plot(places, np.exp(LAWS["sigmoid"].curve(fit.theta, places[:, None])[0]), color=colour, linewidth=1.5)
            axes.set_title(style.strategy_name(name), color=colour)
        axes.set_xlabel("Pretraining loss on test images, own unit each")
        axes.invert_xaxis()
        axes.yaxis.set_major_formatter(FuncFormatter(style.percent))
    grid[0][0].set_ylabel("Top-1 accuracy after finetuning")
    style.size_legend(grid[0][0], style.size_order(data), above_title=True)
    caption = (
        "Does a lower pretraining loss mean a better classifier? Further right: lower loss; one marker a run. Line: a "
        "sigmoid from loss to accuracy through the means over seeds. Losses of different strategies are different "
        "quantities: read each panel alone."
    )
    title = "From pretraining loss to accuracy"
    return Picture("loss_to_accuracy", title, caption, figure, data, wide=len(names) > 1)
