"""fit_law: one call from a table to a law with intervals, a verdict on held-out points, and warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import checks, intervals, style
from analysis.intervals import Estimate
from analysis.isoflop import fit_envelope, fit_isoflop
from analysis.laws import LAWS, Array, Law, Quantity, find_law
from analysis.solve import Problem, search
from scaling.errors import UserError

OPTIMA = {"isoflop": fit_isoflop, "envelope": fit_envelope}
"""Laws of the best size for a compute (approaches 2 and 1 of Hoffmann et al. 2022): x = parameters, flops."""


@dataclass(frozen=True)
class HoldOut:
    """Root mean square error of log y on points kept from the fit, and of the nearest fitted point as a guess."""

    n: int
    log_rmse: float
    baseline_log_rmse: float


@dataclass(frozen=True)
class Fit:
    """A fitted law. `points` has the rows used: x, y, `role` (fitted or held out), and `size` if the table has it."""

    law: str
    formula: str
    x: tuple[str, ...]
    y: str
    n: int
    objective: float
    delta: float
    parameters: dict[str, Estimate]
    tried: int
    agreeing: int
    hold_out: HoldOut | None
    excluded: int
    warnings: tuple[str, ...]
    points: pd.DataFrame = field(repr=False)
    theta: Array = field(repr=False)
    units: intervals.Units | None = field(repr=False)
    draws: Array | None = field(default=None, repr=False)

    def predict(self, x: Mapping[str, Any] | pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
        """The law at `x` (the columns fitted): y, and low to high, the interval of the law, not of one more run."""
        table = pd.DataFrame({name: np.asarray(x[name], dtype=float) for name in self.x})
        law, rows = LAWS["power" if self.law in OPTIMA else self.law], []
        for place in _coordinates(law, table, self.x):
            quantity = intervals.at(law, place)
            rows.append((quantity.value(self.theta), *self._interval(quantity, level)))
        table[["y", "low", "high"]] = np.array(rows).reshape(-1, 3)
        return table

    def _interval(self, quantity: Quantity, level: float) -> intervals.Interval:
        if self.draws is not None:
            values = [quantity.value(theta) for theta in self.draws]
            tail = 50 * (1 - level)
            return float(np.percentile(values, tail)), float(np.percentile(values, 100 - tail))
        return self.units.interval(quantity, level) if self.units else (math.nan, math.nan)

    def plot(self, axes: Axes, colour: str = "#0072B2", beyond: float = 1.0) -> None:
        """Draws a law of one variable: points, curve, 95 % band; dashed from the largest fitted x to `beyond` times it.

        Held-out points are hollow. UserError for a law of two variables, which is a surface.
        """
        if len(self.x) > 1:
            raise UserError("law", self.law, "a law of one variable", why=f"this one is over {', '.join(self.x)}")
        (name,) = self.x
        fitted = self.points[self.points["role"] == "fitted"]
        held = self.points[self.points["role"] != "fitted"]
        low, high = float(fitted[name].min()), float(fitted[name].max())
        end = max(high, float(held[name].max()) if len(held) else high) * beyond
        for first, last, line in ((low, high, "-"), (high, end, "--")):
            if last > first:
                curve = self.predict({name: np.geomspace(first, last, 12)})
                axes.plot(curve[name], curve["y"], line, color=colour, linewidth=1.6)
                if np.isfinite(curve[["low", "high"]].to_numpy()).all():
                    axes.fill_between(curve[name], curve["low"], curve["high"], color=colour, alpha=0.1, linewidth=0)
        for points, hollow in ((fitted, False), (held, True)):
            style.scatter(axes, points[name], points[self.y], points.get("size"), colour, hollow)
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel=self.y)

    def as_json(self) -> dict[str, Any]:
        """The object of FILE.json."""
        held = self.hold_out
        return {
            "law": self.law,
            "n": self.n,
            "objective": self.objective,
            "delta": self.delta if math.isfinite(self.delta) else None,
            "parameters": {name: estimate.as_json() for name, estimate in self.parameters.items()},
            "starts": {"tried": self.tried, "agreeing": self.agreeing},
            "hold_out": held and {"n": held.n, "log_rmse": held.log_rmse, "baseline_log_rmse": held.baseline_log_rmse},
            "excluded": self.excluded,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        """A summary for people."""
        lines = [f"{self.formula}   x = {', '.join(self.x)}   y = {self.y}   {self.n} points"]
        for name, estimate in self.parameters.items():
            error = f"± {estimate.standard_error:.3g}" if estimate.standard_error is not None else ""
            low, high = estimate.interval_95 or (math.nan, math.nan)
            ends = f"[{low:.4g}, {high:.4g}]" if not math.isnan(low) else "no interval"
            lines.append(f"  {name:<10}{estimate.value:>12.5g} {error:<12} 95 % {ends}")
        lines.append(f"  objective {self.objective:.8g}; {self.agreeing} of {self.tried} starts agree")
        if self.hold_out:
            held = self.hold_out
            guess = f"the nearest fitted point as a guess {held.baseline_log_rmse:.4f}"
            lines.append(f"  {held.n} held out: log RMSE {held.log_rmse:.4f} ({guess})")
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])


def fit_law(
    frame: pd.DataFrame,
    law: str,
    x: str | Sequence[str],
    y: str,
    *,
    exclude: str | None = None,
    hold_out: str | None = None,
    delta: float = 1e-3,
    bootstrap: int = 0,
    resample_by: str | None = None,
    seed: int = 0,
) -> Fit:
    """Fits y = law(x) to the rows of `frame` by the sum of Huber losses (threshold `delta`) of log residuals.

    `x`: columns in the law's order. `exclude`, `hold_out`: pandas queries; held-out rows are only scored. Intervals
    are those of analysis.intervals, or with `bootstrap` draws the percentiles of refits to resampled rows, or to
    resampled values of the column `resample_by`. What cannot be fitted raises UserError and says why.
    """
    columns = (x,) if isinstance(x, str) else tuple(x)
    checks.options(delta, bootstrap, resample_by, frame)
    if law in OPTIMA:
        if bootstrap or hold_out:
            given = "bootstrap" if bootstrap else "hold_out"
            raise UserError(given, bootstrap or hold_out, f"no such option for {law}", why="it fits optima, not rows")
        return _fit_optima(frame, law, columns, y, exclude, delta)
    found = find_law(law, OPTIMA)
    table, excluded, warnings = checks.select(frame, found.name, found.x, columns, y, exclude, found.log_x)
    held = checks.query(table, "hold_out", hold_out) if hold_out else table.iloc[:0]
    if hold_out and held.empty:
        warnings.append(f"no row is held out: {hold_out} holds for none")
    fitted = table.drop(held.index)
    checks.enough(fitted, found, columns)
    places, log_y = _coordinates(found, fitted, columns), np.log(fitted[y].to_numpy(dtype=float))
    problem = Problem(found.curve, places, log_y, np.ones(len(log_y)), delta)
    theta, objective, tried, agreeing = search(problem, found.starts(places, log_y))
    errors, condition = intervals.standard_errors(problem, theta, found)
    draws, units = None, intervals.fit_units(found, places, log_y, theta)
    if bootstrap:
        clusters = pd.factorize(fitted[resample_by])[0] if resample_by else None
        draws = intervals.draw_bootstrap(problem, theta, bootstrap, seed, clusters)
    parameters = _estimates(found, theta, errors, units, draws, warnings)
    warnings += checks.warn_search(tried, agreeing)
    if not bootstrap:
        warnings += checks.warn_errors(errors, condition, problem.residuals(theta)[0], delta, found.parameters)
    warnings += checks.warn_data(found, problem, units, parameters, columns, y)
    points = pd.concat([fitted.assign(role="fitted"), held.assign(role="held out")])
    points = points[[*columns, y, "role", *({"size"} & set(points) - {*columns, y})]]
    return Fit(
        law=law, formula=found.formula, x=columns, y=y, n=len(fitted), objective=objective, delta=delta,
        parameters=parameters, tried=tried, agreeing=agreeing, hold_out=_score(found, theta, fitted, held, columns, y),
        excluded=excluded, warnings=tuple(warnings), points=points, theta=theta, units=units, draws=draws,
    )  # fmt: skip


def fit_groups(
    frame: pd.DataFrame, group: str, law: str, x: str | Sequence[str], y: str, **options: Any
) -> dict[str, Fit]:
    """fit_law for each value of the column `group`, by value; UserError names the group that cannot be fitted.

    A group of which `exclude` leaves no row is none.
    """
    checks.column(frame, "group", group)
    fits, nowhere, exclude = {}, int(frame[group].isna().sum()), options.get("exclude")
    for value, part in frame.groupby(group, sort=True):
        if exclude and len(checks.query(part, "exclude", exclude)) == len(part):
            continue
        try:
            fit = fit_law(part, law, x, y, **options)
        except UserError as error:
            why = f"{group} = {value}" + (f": {error.why}" if error.why else "")
            raise UserError(error.field, error.value, error.valid, why) from error
        warnings = (f"{nowhere} rows have no {group} and are in no group",) if nowhere else ()
        fits[str(value)] = replace(fit, warnings=(*fit.warnings, *warnings))
    if not fits:
        raise UserError("group", group, "a column with a value in some row that is not excluded")
    return fits


def _coordinates(law: Law, table: pd.DataFrame, columns: Sequence[str]) -> Array:
    values = table[list(columns)].to_numpy(dtype=float)
    return np.log(values) if law.log_x else values


def _estimates(
    law: Law,
    theta: Array,
    errors: Mapping[str, float | None],
    units: intervals.Units | None,
    draws: Array | None,
    warnings: list[str],
) -> dict[str, Estimate]:
    """Value, standard error and interval of every quantity of the law."""
    estimates: dict[str, Estimate] = {}
    widened: list[str] = []
    for name, quantity in law.quantities.items():
        value, error = quantity.value(theta), errors[name]
        interval: intervals.Interval | None = None
        if draws is not None:
            drawn = np.array([quantity.value(draw) for draw in draws])
            error = float(drawn.std(ddof=1)) if len(drawn) > 1 else None
            interval = (float(np.percentile(drawn, 2.5)), float(np.percentile(drawn, 97.5)))
        elif units is not None:
            interval = units.interval(quantity)
            if not interval[0] <= value <= interval[1]:
                widened.append(name)
                interval = (min(interval[0], value), max(interval[1], value))
        estimates[name] = Estimate(value, error, interval)
    if widened:
        names = ", ".join(widened)
        warnings.append(f"{names}: robust and least-squares fits disagree; the intervals were widened to hold both")
    return estimates


def _score(
    law: Law, theta: Array, fitted: pd.DataFrame, held: pd.DataFrame, columns: Sequence[str], y: str
) -> HoldOut | None:
    if held.empty:
        return None
    near, far = _coordinates(law, fitted, columns), _coordinates(law, held, columns)
    actual = np.log(held[y].to_numpy(dtype=float))
    error = actual - law.curve(theta, far)[0]
    closest = ((far[:, None, :] - near[None, :, :]) ** 2).sum(axis=2).argmin(axis=1)
    guess = np.log(fitted[y].to_numpy(dtype=float))[closest]
    return HoldOut(len(held), float(np.sqrt(np.mean(error**2))), float(np.sqrt(np.mean((actual - guess) ** 2))))


def _fit_optima(
    frame: pd.DataFrame, law: str, columns: tuple[str, ...], y: str, exclude: str | None, delta: float
) -> Fit:
    """A power law through the best size of each budget, or of each stretch of the envelope."""
    table, excluded, warnings = checks.select(frame, law, ("parameters", "flops"), columns, y, exclude, True)
    optima, notes = OPTIMA[law](table, columns[0], columns[1], y)
    power = fit_law(optima, "power", columns[1], columns[0], delta=delta)
    names = {"k": power.parameters["b"], "a": power.parameters["c"]}
    return Fit(
        law=law, formula="best parameters = k flops^a", x=(columns[1],), y=columns[0], n=len(table),
        objective=power.objective, delta=delta, parameters=names, tried=power.tried, agreeing=power.agreeing,
        hold_out=None, excluded=excluded, warnings=(*warnings, *notes, *power.warnings), points=power.points,
        theta=power.theta, units=power.units,
    )  # fmt: skip
