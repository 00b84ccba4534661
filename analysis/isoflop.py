"""The best model size for a budget, without a law for the loss: iso-FLOP parabolas and the envelope of curves."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.laws import Array
from scaling.errors import UserError

SAME_BUDGET = 0.25
"""Runs of one budget differ by less than this in log FLOPs. `match: flops` counts scans, which total_train_flops does
not: at 32 px a pico Mamba has a fourth less matrix products for the same budget than a large one."""
SIZES_A_BUDGET = 4
BUDGETS = 3


def budgets(flops: Array) -> Array:
    """The budget (0, 1, ...) of each run, from small to large; each begins where the last is full."""
    found, budget, smallest = np.empty(len(flops), dtype=int), -1, -np.inf
    for run in np.argsort(flops, kind="stable"):
        if np.log(flops[run]) - smallest > SAME_BUDGET:
            budget, smallest = budget + 1, np.log(flops[run])
        found[run] = budget
    return found


def parabolas(table: pd.DataFrame, parameters: str, flops: str, y: str) -> pd.DataFrame:
    """One row a budget: a parabola of log y over log parameters (approach 2 of Hoffmann et al. 2022, section 3.2).

    Columns: flops, sizes, and log y = level + slope z + square z^2 with z = log parameters - centre; low and high, the
    range of its sizes; best (parameters at the bottom) and lowest (y there); `why` it cannot be used, empty if it can.
    """
    rows = []
    for _, runs in table.assign(budget=budgets(table[flops].to_numpy(dtype=float))).groupby("budget"):
        amount, size = float(np.exp(np.log(runs[flops]).mean())), np.log(runs[parameters].to_numpy(dtype=float))
        row = {"flops": amount, "sizes": len(np.unique(size)), "low": np.exp(size.min()), "high": np.exp(size.max())}
        rows.append(row)
        if row["sizes"] < SIZES_A_BUDGET:
            row["why"] = "fewer than four sizes"
            continue
        centre = size.mean()
        square, slope, level = np.polyfit(size - centre, np.log(runs[y].to_numpy(dtype=float)), 2)
        row |= {"centre": centre, "square": square, "slope": slope, "level": level}
        bottom = centre - slope / (2 * square) if square != 0 else np.inf
        if square <= 0 or not size.min() < bottom < size.max():
            row["why"] = "minimum at the edge of the sizes"
            continue
        row |= {"best": np.exp(bottom), "lowest": np.exp(level - slope**2 / (4 * square)), "why": ""}
    columns = ["flops", "sizes", "low", "high", "centre", "square", "slope", "level", "best", "lowest", "why"]
    return pd.DataFrame(rows).reindex(columns=columns)


def fit_isoflop(table: pd.DataFrame, parameters: str, flops: str, y: str) -> tuple[pd.DataFrame, list[str]]:
    """The optimum of each budget: columns `parameters`, `flops`, `y`. Budgets whose bottom lies outside their runs are
    left out with a warning; fewer than three left are refused."""
    found = parabolas(table, parameters, flops, y)
    bad = found[found["why"] != ""]
    warnings = []
    for why, rows in bad.groupby("why", sort=False):
        named = ", ".join(f"{amount:.2e}" for amount in rows["flops"].head(3)) + ", ..." * (len(rows) > 3)
        warnings.append(f"left out, {why}: {len(rows)} budget{'s' * (len(rows) > 1)} ({named} FLOPs)")
    usable = found[found["why"] == ""]
    if len(usable) < BUDGETS:
        valid = "at least three budgets, each with four sizes around its best"
        raise UserError(flops, f"{len(usable)} usable budgets", valid, why="; ".join(warnings))
    optima = usable[["best", "flops", "lowest"]].set_axis([parameters, flops, y], axis=1)
    return optima.reset_index(drop=True), warnings


def envelope(curves: pd.DataFrame, parameters: str, flops: str, y: str, points: int = 200) -> pd.DataFrame:
    """The lowest y that any training curve reaches for each compute (approach 1 of Hoffmann et al. 2022).

    `curves` has a row a logged step with the column `run`; each run's running minimum is read at `points` computes,
    evenly spaced in log. Columns: flops, parameters and y of the run that is best there, and `run`. Where only one run
    is present nothing is the best of several, and the point is left out.
    """
    usable = curves[(curves[flops] > 0) & (curves[y] > 0)]
    grid = np.geomspace(usable[flops].min(), usable[flops].max(), points)
    values, sizes, names = [], [], []
    for name, run in usable.groupby("run"):
        run = run.sort_values(flops)
        lowest = np.minimum.accumulate(run[y].to_numpy(dtype=float))
        values.append(np.interp(np.log(grid), np.log(run[flops]), lowest, left=np.nan, right=np.nan))
        sizes.append(float(run[parameters].iloc[0]))
        names.append(str(name))
    stacked = np.array(values)
    keep = np.isfinite(stacked).sum(axis=0) > 1
    best = np.nanargmin(stacked[:, keep], axis=0)
    return pd.DataFrame(
        {flops: grid[keep], parameters: np.array(sizes)[best], y: stacked[:, keep][best, range(keep.sum())],
         "run": np.array(names, dtype=object)[best]}
    )  # fmt: skip


def fit_envelope(curves: pd.DataFrame, parameters: str, flops: str, y: str) -> tuple[pd.DataFrame, list[str]]:
    """The compute at which each size is the best: columns `parameters`, `flops`, `y`, one row a size.

    Neighbouring points of an envelope belong to one curve and say the same thing, so a power law through all of them
    has intervals far too narrow. Here a size counts once, at the middle (in log) of its stretch of the envelope. The
    smallest and the largest size on it are left out: their stretches end because the study does. Fewer than three left
    are refused.
    """
    if "run" not in curves:
        valid = "a column `run` that names the training curve of each row"
        raise UserError("table", "no column run", valid, why="the envelope is taken over training curves")
    best = envelope(curves, parameters, flops, y)
    stretches = best.groupby(parameters)
    middles = pd.DataFrame(
        {flops: np.exp(stretches[flops].agg(lambda values: np.log(values).mean())),
         y: np.exp(stretches[y].agg(lambda values: np.log(values).mean()))}
    ).reset_index()  # fmt: skip
    inner = middles.sort_values(parameters).iloc[1:-1]
    turned = (np.diff(inner[flops]) <= 0).any()
    warnings = ["larger sizes are not the best at larger compute throughout"] if turned else []
    if len(inner) < BUDGETS:
        valid = "training curves of at least five sizes that take turns in being the best"
        raise UserError(parameters, f"{len(middles)} sizes on the envelope", valid)
    return inner[[parameters, flops, y]].reset_index(drop=True), warnings
