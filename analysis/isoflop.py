"""The best model size for a budget, without a law for the loss: iso-FLOP parabolas and the envelope of curves."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.laws import Array
from scaling.errors import UserError

SAME_BUDGET = 0.05
"""Runs whose log FLOPs differ by less than this from the next belong to one budget."""


def budgets(flops: Array) -> Array:
    """The budget (0, 1, ...) of each run, from small to large: gaps in log FLOPs separate them."""
    order = np.argsort(flops, kind="stable")
    steps = np.diff(np.log(flops[order])) > SAME_BUDGET
    found = np.empty(len(flops), dtype=int)
    found[order] = np.concatenate([[0], np.cumsum(steps)])
    return found


def fit_isoflop(table: pd.DataFrame, parameters: str, flops: str, y: str) -> tuple[pd.DataFrame, list[str]]:
    """For each budget the parameters at the bottom of a parabola of log y over log parameters (approach 2 of
    Hoffmann et al. 2022): columns `parameters`, `flops`, `y`. Budgets whose bottom lies outside their runs are left
    out with a warning; fewer than three left are refused."""
    table = table.assign(budget=budgets(table[flops].to_numpy(dtype=float)))
    rows, warnings = [], []
    for _, runs in table.groupby("budget"):
        amount = float(np.exp(np.log(runs[flops]).mean()))
        size = np.log(runs[parameters].to_numpy(dtype=float))
        if len(np.unique(size)) < 4:
            warnings.append(f"the budget of {amount:.2e} FLOPs has fewer than four sizes and was left out")
            continue
        centre = size.mean()
        square, slope, level = np.polyfit(size - centre, np.log(runs[y].to_numpy(dtype=float)), 2)
        bottom = centre - slope / (2 * square) if square != 0 else np.inf
        if square <= 0 or not size.min() < bottom < size.max():
            warnings.append(
                f"the budget of {amount:.2e} FLOPs has its minimum at the edge of its sizes and was left out"
            )
            continue
        rows.append((float(np.exp(bottom)), amount, float(np.exp(level - slope**2 / (4 * square)))))
    if len(rows) < 3:
        valid = "at least three budgets, each with four sizes around its best"
        raise UserError(flops, f"{len(rows)} usable budgets", valid, why="; ".join(warnings))
    return pd.DataFrame(rows, columns=[parameters, flops, y]), warnings


def envelope(curves: pd.DataFrame, parameters: str, flops: str, y: str, points: int = 200) -> pd.DataFrame:
    """The lowest y that any training curve reaches for each compute (approach 1 of Hoffmann et al. 2022).

    `curves` has a row a logged step with the column `run`; each run's running minimum is read at `points` computes,
    evenly spaced in log. Columns: flops, parameters and y of the run that is best there. Where only one run is present
    nothing is the best of several, and the point is left out.
    """
    usable = curves[(curves[flops] > 0) & (curves[y] > 0)]
    grid = np.geomspace(usable[flops].min(), usable[flops].max(), points)
    values, sizes = [], []
    for _, run in usable.groupby("run"):
        run = run.sort_values(flops)
        lowest = np.minimum.accumulate(run[y].to_numpy(dtype=float))
        values.append(np.interp(np.log(grid), np.log(run[flops]), lowest, left=np.nan, right=np.nan))
        sizes.append(float(run[parameters].iloc[0]))
    stacked = np.array(values)
    keep = np.isfinite(stacked).sum(axis=0) > 1
    best = np.nanargmin(stacked[:, keep], axis=0)
    return pd.DataFrame(
        {flops: grid[keep], parameters: np.array(sizes)[best], y: stacked[:, keep][best, range(keep.sum())]}
    )
