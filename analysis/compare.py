"""Comparing fits: differences of exponents, where two curves cross, which form extrapolates, how far one can."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit import Fit, fit_law
from analysis.intervals import Interval, Units, at, average_units
from analysis.laws import LAWS, Array, Quantity
from analysis.solve import Problem
from scaling.errors import UserError

CROSSING_POINTS = 80
NO_SCATTER = 1e-24
"""Variance of log y below which points lie on their law: it keeps residuals that are all zero from being divided by."""
DIFFERENCE = ("difference", "low", "high", "p")


@dataclass(frozen=True)
class Crossing:
    """Where two curves meet: `at`, or None where they do not within `searched`, and the 95 % interval."""

    at: float | None
    interval_95: Interval | None
    searched: Interval


def joint_units(first: Units, second: Units, paired: bool) -> Units:
    """Two fits as one: theta of both in a row, residuals whitened by their covariance.

    `paired`: both were measured at the same units and what moves one moves the other (the same seeds, hence the same
    data order): their covariance is estimated from the residuals. For power laws it is then exactly the paired t test.
    Otherwise the fits are independent; freedom is the smaller of the two, which is on the safe side of Welch's.
    """
    count, cut = len(first.problem.log_y), len(first.theta)
    residuals = [units.problem.residuals(units.theta)[0] for units in (first, second)]
    if paired:
        stacked = np.stack(residuals)
        covariance = stacked @ stacked.T / first.freedom
        least = (1e-12 * np.trace(covariance) + NO_SCATTER) * np.eye(2)
        whiten = np.kron(np.linalg.inv(np.linalg.cholesky(covariance + least)), np.eye(count))
    else:
        scales = [np.full(len(units.problem.log_y), (units.variance + NO_SCATTER) ** -0.5) for units in (first, second)]
        whiten = np.diag(np.concatenate(scales))

    def curve(theta: Array, _x: Array) -> tuple[Array, Array]:
        one, by_one = first.problem.curve(theta[:cut], first.problem.x)
        two, by_two = second.problem.curve(theta[cut:], second.problem.x)
        jacobian = np.zeros((len(one) + len(two), len(theta)))
        jacobian[: len(one), :cut], jacobian[len(one) :, cut:] = by_one, by_two
        return whiten @ np.concatenate([one, two]), whiten @ jacobian

    log_y = whiten @ np.concatenate([first.problem.log_y, second.problem.log_y])
    problem = Problem(curve, np.zeros((len(log_y), 1)), log_y, np.ones(len(log_y)), math.inf)
    theta = np.concatenate([first.theta, second.theta])
    return Units(problem, theta, problem.objective(theta), min(first.freedom, second.freedom), variance=1.0)


def minus(first: Quantity, second: Quantity, cut: int) -> Quantity:
    """The difference of a quantity of the first `cut` entries of theta and one of the rest."""

    def of(theta: Array) -> tuple[float, Array]:
        (one, by_one), (two, by_two) = first.of(theta[:cut]), second.of(theta[cut:])
        return one - two, np.concatenate([by_one, -by_two])

    return Quantity(of)


def can_pair(first: Fit, second: Fit) -> bool:
    """Whether both fits stand on the same units."""
    if first.units is None or second.units is None:
        return False
    return bool(np.array_equal(first.units.problem.x, second.units.problem.x)) and first.law == second.law


def compare_exponents(fits: Mapping[str, Fit], quantity: str = "c", paired: bool = False) -> pd.DataFrame:
    """Differences of one quantity between every two fits: columns first, second, difference, low, high, p, p_holm.

    `p_holm` is corrected for the number of pairs (Holm 1979). Pairing needs the same x in both.
    """
    rows = []
    for (name, one), (other, two) in itertools.combinations(fits.items(), 2):
        if paired and not can_pair(one, two):
            raise UserError("paired", f"{name}, {other}", "fits of one law at the same x")
        rows.append((name, other, *_difference(one, two, quantity, paired)))
    return _corrected(pd.DataFrame(rows, columns=["first", "second", *DIFFERENCE]))


def compare_strategies(
    frame: pd.DataFrame,
    law: str,
    x: str,
    y: str,
    group: str = "strategy",
    quantity: str = "c",
    delta: float = math.inf,
) -> pd.DataFrame:
    """compare_exponents straight from runs, each pair of groups paired by seed wherever the runs allow it.

    Runs of one seed read the same images in the same order, so of two groups only the runs with a partner of the same
    size (column `size`, else the same x) and seed are used and paired; `paired` says whether and `pairs` how many.
    Groups whose partners cover less than every size and x of either are compared as independent, on all their runs.
    Groups that cannot be fitted are left out.
    """
    cell = ["size" if "size" in frame else x, "seed"]
    frame = frame.dropna(subset=[x, y])
    fits = _fits(frame, law, x, y, group, delta)
    rows: list[tuple[Any, ...]] = []
    for name, other in itertools.combinations(fits, 2):
        one, two = (frame[frame[group].astype(str) == key] for key in (name, other))
        matched = _partners(one, two, cell, x) if "seed" in frame else None
        if matched is not None:
            first, second = (fit_law(part, law, x, y, delta=delta) for part in matched)
            rows.append((name, other, *_difference(first, second, quantity, paired=True), True, len(matched[0])))
        else:
            rows.append((name, other, *_difference(fits[name], fits[other], quantity, paired=False), False, 0))
    return _corrected(pd.DataFrame(rows, columns=["first", "second", *DIFFERENCE, "paired", "pairs"]))


def _fits(frame: pd.DataFrame, law: str, x: str, y: str, group: str, delta: float) -> dict[str, Fit]:
    found = {}
    for value, part in frame.groupby(group, sort=True):
        with contextlib.suppress(UserError):  # what cannot be fitted has no exponent to compare
            found[str(value)] = fit_law(part, law, x, y, delta=delta)
    return found


def _partners(
    one: pd.DataFrame, two: pd.DataFrame, cell: list[str], x: str
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The runs of both that have a partner in the other, or None where they do not cover every size and x of both.

    None as well where a size has several x or the sizes of both stand in another order along x, as fits pair the units
    by their place; and where no seeds are known.
    """
    if one.duplicated(cell).any() or two.duplicated(cell).any():
        return None
    shared = one[cell].dropna().merge(two[cell], on=cell)
    first, second = (part.merge(shared, on=cell) for part in (one, two))
    orders = [list(part.drop_duplicates([cell[0], x]).sort_values(x)[cell[0]]) for part in (one, two, first, second)]
    distinct = min(one[cell[0]].nunique(), one[x].nunique(), two[x].nunique())
    return (first, second) if all(order == orders[0] for order in orders) and distinct == len(orders[0]) else None


def _difference(one: Fit, two: Fit, quantity: str, paired: bool) -> tuple[float, float, float, float]:
    """The difference of a quantity, its 95 % interval and its p value."""
    if one.units is None or two.units is None:
        raise UserError("fits", f"{one.n} and {two.n} points", "fits with more distinct x than parameters")
    units = joint_units(one.units, two.units, paired)
    both = minus(LAWS[one.law].quantities[quantity], LAWS[two.law].quantities[quantity], len(one.units.theta))
    return both.of(units.theta)[0], *units.interval(both), units.p_value(both, 0.0)


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(p_holm=holm(table["p"].to_numpy(dtype=float)))


def holm(p: Array) -> Array:
    """p values corrected for their number by Holm's step-down rule."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p, dtype=float)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def find_crossing(first: Fit, second: Fit, beyond: float = 10.0, paired: bool = False) -> Crossing:
    """Where two curves of one variable cross, from the smallest fitted x to `beyond` times the largest.

    The interval holds every x at which equality is not rejected at 5 % (a Fieller set, so it may be open). Only for an
    accuracy or error under one protocol: losses of different objectives never cross in any meaning.
    """
    if len(first.x) != 1 or first.x != second.x or first.y != second.y:
        raise UserError("fits", f"{first.y} and {second.y}", "two fits of the same y over the same single x")
    if first.units is None or second.units is None:
        raise UserError("fits", "too few points", "fits with more distinct x than parameters")
    name = first.x[0]
    both = pd.concat([first.points[name], second.points[name]])
    grid = np.linspace(np.log(both.min()), np.log(both.max() * beyond), CROSSING_POINTS)
    units, cut = joint_units(first.units, second.units, paired), len(first.units.theta)
    gaps = [minus(at(LAWS[first.law], x), at(LAWS[second.law], x), cut) for x in grid[:, None]]
    values = np.array([gap.of(np.concatenate([first.theta, second.theta]))[0] for gap in gaps])
    inside = np.array([units.p_value(gap, 0.0) >= 0.05 for gap in gaps])
    searched = (float(np.exp(grid[0])), float(np.exp(grid[-1])))
    turns = np.flatnonzero(np.sign(values[:-1]) != np.sign(values[1:]))
    if not len(turns):
        return Crossing(None, None, searched)
    turn = turns[0]
    share = values[turn] / (values[turn] - values[turn + 1])
    place = float(np.exp(grid[turn] + share * (grid[turn + 1] - grid[turn])))
    left, right = turn, turn + 1
    while left >= 0 and inside[left]:
        left -= 1
    while right < len(grid) and inside[right]:
        right += 1
    low = float(np.exp(grid[left])) if left >= 0 else 0.0
    high = float(np.exp(grid[right])) if right < len(grid) else math.inf
    return Crossing(place, (low, high), searched)


def choose_form(
    frame: pd.DataFrame, laws: Sequence[str], x: str, y: str, hold_out: str, delta: float = 1e-3
) -> pd.DataFrame:
    """Laws by their error on held-out points, best first, with the trivial baseline (the nearest fitted point) among
    them: columns law, n, log_rmse, and why a law could not be fitted."""
    rows: list[tuple[str, float, float, str]] = []
    baseline = math.nan
    for law in laws:
        try:
            fit = fit_law(frame, law, x, y, hold_out=hold_out, delta=delta)
        except UserError as error:
            rows.append((law, math.nan, math.nan, str(error)))
            continue
        if fit.hold_out is None:
            raise UserError("hold_out", hold_out, "a pandas query that holds for some row", why="it holds for none")
        baseline = fit.hold_out.baseline_log_rmse
        rows.append((law, fit.n, fit.hold_out.log_rmse, ""))
    rows.append(("nearest point", math.nan, baseline, ""))
    table = pd.DataFrame(rows, columns=["law", "n", "log_rmse", "refused"])
    return table.sort_values("log_rmse", kind="stable", ignore_index=True)


def roll_out(frame: pd.DataFrame, law: str, x: str, y: str, delta: float = 1e-3) -> pd.DataFrame:
    """What the law, fitted on the smallest sizes only, would have said of each larger one.

    A row for each end of the fitted range and each x beyond it: columns fitted_to, x, y (mean in log), predicted, low,
    high, log_error.
    """
    usable = frame[(frame[x] > 0) & (frame[y] > 0)]
    places, means = average_units(np.log(usable[[x]].to_numpy(dtype=float)), np.log(usable[y].to_numpy(dtype=float)))
    sizes, rows = np.exp(places[:, 0]), list[pd.DataFrame]()
    for count in range(LAWS[law].parameters + 1, len(sizes)):
        fit = fit_law(usable[usable[x] <= sizes[count - 1] * (1 + 1e-9)], law, x, y, delta=delta)
        predicted = fit.predict({x: sizes[count:]}).rename(columns={x: "x", "y": "predicted"})
        rows.append(predicted.assign(fitted_to=sizes[count - 1], y=np.exp(means[count:])))
    columns = ["fitted_to", "x", "y", "predicted", "low", "high"]
    table = pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns, dtype=float)
    return table.assign(log_error=np.log(table["predicted"] / table["y"]))
