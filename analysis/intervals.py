"""Intervals that hold at the sizes of real studies.

Runs of one size differ by their seed; sizes differ from the law by more than their seeds do. So the units are the
distinct values of x, not the runs: each unit counts once, by the mean of its log y. An interval holds every value of a
quantity for which the best fit of the units gets worse by less than F allows,

    S(value) <= S_min + F_{0.95}(1, units - parameters) s^2 / 2,    s^2 = 2 S_min / (units - parameters)

with S half the sum of squares: the exact t interval where the law is linear in its parameters. It keeps its level with
few units, where a percentile bootstrap does not, and stays open towards a value that the data cannot rule out (a floor
of zero, an exponent without bound). Method: Bates and Watts 1988, section 6.1 (profile t). From ROBUST_FROM degrees of
freedom on, S is the sum of Huber losses at 1.345 robust standard deviations, with s^2 = sum psi^2 / (units -
parameters) / mean psi' (Huber 1981, section 7.10), so that single outliers do not move the interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.laws import Array, Law, Quantity
from analysis.solve import EXACT, LIMIT, Problem, descend, hold, influence, polish, search

Interval = tuple[float, float]
ROBUST_FROM = 50
REACH = 30.0
"""How far a bound is looked for, in logarithms or in units of the exponent; beyond it the interval is open."""


@dataclass(frozen=True)
class Estimate:
    """One parameter. An infinite end of the interval means that the data leave it open; None, that there is none."""

    value: float
    standard_error: float | None
    interval_95: Interval | None

    def as_json(self) -> dict[str, Any]:
        """The parameter as it stands in FILE.json; what is open or absent is null."""
        low, high = self.interval_95 or (math.nan, math.nan)
        ends = [end if math.isfinite(end) else None for end in (low, high)]
        return {"value": self.value, "standard_error": self.standard_error, "interval_95": ends}


@dataclass(frozen=True)
class Units:
    """The least-squares fit of the units of a table, on which intervals rest."""

    problem: Problem
    theta: Array
    objective: float
    freedom: float
    variance: float

    def limit(self, level: float = 0.95) -> float:
        """The objective up to which a value is inside the interval.

        Units on the law to rounding leave open what further values reach as exactly: a floor under equal accuracies.
        """
        worse = 0.5 * float(special.fdtri(1, self.freedom, level)) * self.variance
        return self.objective + max(worse, EXACT * len(self.problem.log_y))

    def contains(self, quantity: Quantity, value: float) -> bool:
        """Whether the 95 % interval of `quantity` holds `value`, without looking for its ends."""
        target = float(np.log(value)) if quantity.log else value
        return hold(self.problem, quantity.of, target, self.theta)[1] <= self.limit()

    def p_value(self, quantity: Quantity, value: float) -> float:
        """How often chance alone would put the fit this far from `value` (on the inner scale of `quantity`)."""
        worse = hold(self.problem, quantity.of, value, self.theta)[1] - self.objective
        return float(special.fdtrc(1, self.freedom, max(0.0, 2 * worse / self.variance)))

    def interval(self, quantity: Quantity, level: float = 0.95) -> Interval:
        """The interval of `quantity`; an end that the data leave open is infinite (zero below, for a positive one)."""
        centre, gradient = quantity.of(self.theta)
        _, jacobian = self.problem.residuals(self.theta)
        covariance = np.linalg.pinv(jacobian.T @ jacobian) * self.variance
        step = float(np.sqrt(max(float(gradient @ covariance @ gradient), 0.0)))
        step = float(np.clip(step, 1e-9 * (1 + abs(centre)), 2.0))
        low, high = (self._end(quantity, centre, sign * step, self.limit(level)) for sign in (-1.0, 1.0))
        if quantity.log:
            return float(np.exp(low)), float(np.exp(high))
        return low, high

    def _end(self, quantity: Quantity, centre: float, step: float, limit: float) -> float:
        """Walks outward until the objective passes the limit, then closes in on the crossing."""

        def excess(objective: float) -> float:
            return float(np.sqrt(max(objective - self.objective, 0.0)) - np.sqrt(limit - self.objective))

        theta, inner, outer, inside = self.theta, centre, centre + step, excess(self.objective)
        while True:
            if abs(outer - centre) > REACH or abs(outer) > LIMIT - 1:
                return float(np.copysign(np.inf, step))
            held, objective = hold(self.problem, quantity.of, outer, theta)
            if objective > limit:
                break
            theta, inner, outer, inside = held, outer, outer + 1.6 * (outer - inner), excess(objective)
        if not np.isfinite(objective):
            outer = self._last_finite(quantity, inner, outer, theta)
            objective = hold(self.problem, quantity.of, outer, theta)[1]
            if objective <= limit:
                return outer
        outside = excess(objective)
        while abs(outer - inner) > 1e-4 * abs(outer - centre):
            share = float(np.clip(-inside / (outside - inside), 0.05, 0.95))
            middle = inner + share * (outer - inner)
            held, objective = hold(self.problem, quantity.of, middle, theta)
            if objective > limit:
                outer, outside, inside = middle, excess(objective), inside / 2
            else:
                theta, inner, inside, outside = held, middle, excess(objective), outside / 2
        return outer

    def _last_finite(self, quantity: Quantity, inner: float, outer: float, theta: Array) -> float:
        """The furthest value towards `outer` that the quantity can take."""
        for _ in range(40):
            middle = 0.5 * (inner + outer)
            reachable = np.isfinite(hold(self.problem, quantity.of, middle, theta, iterations=5)[1])
            inner, outer = (middle, outer) if reachable else (inner, middle)
        return inner


def average_units(x: Array, log_y: Array) -> tuple[Array, Array]:
    """One row for each distinct x: x (units, columns) and the mean log y (units,)."""
    unique, place = np.unique(np.round(x, 12), axis=0, return_inverse=True)
    place = place.reshape(-1)
    return unique, np.bincount(place, weights=log_y) / np.bincount(place)


def fit_units(law: Law, x: Array, log_y: Array, near: Array) -> Units | None:
    """The units of these points fitted, starting near a theta and from the grid; None with too few units."""
    unit_x, unit_y = average_units(x, log_y)
    freedom = len(unit_y) - law.parameters
    if freedom < 1:
        return None
    problem = Problem(law.curve, unit_x, unit_y, np.ones(len(unit_y)), np.inf)
    ends = [polish(problem, descend(problem, near)[0])]
    if law.parameters > 2:
        ends.append(search(problem, law.starts(unit_x, unit_y), tried=8)[:2])
    theta, objective = min(ends, key=lambda end: end[1])
    if freedom >= ROBUST_FROM:
        scale = float(np.median(np.abs(problem.residuals(theta)[0]))) / 0.6745 * np.sqrt(len(unit_y) / freedom)
        problem = replace(problem, delta=1.345 * scale)
        theta, objective = polish(problem, descend(problem, theta)[0])
    residual, _ = problem.residuals(theta)
    psi, inside = influence(residual, problem.delta), np.abs(residual) <= problem.delta
    return Units(problem, theta, objective, freedom, variance=float(psi @ psi) / freedom / float(np.mean(inside)))


def at(law: Law, x: Array) -> Quantity:
    """The law's y at one x (columns,) as a quantity."""

    def of(theta: Array) -> tuple[float, Array]:
        value, jacobian = law.curve(theta, x[None, :])
        return float(value[0]), jacobian[0]

    return Quantity(of, log=True)


def draw_bootstrap(
    problem: Problem, theta: Array, draws: int, seed: int, clusters: NDArray[np.intp] | None = None
) -> Array:
    """theta of `draws` resamples of the points, or of whole clusters: (draws, p). Each refit starts from theta."""
    generator = np.random.default_rng(seed)
    owner = np.arange(len(problem.log_y)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    number = int(owner.max()) + 1
    found = []
    for _ in range(draws):
        times = np.bincount(generator.integers(0, number, number), minlength=number)[owner].astype(float)
        resample = Problem(problem.curve, problem.x, problem.log_y, times * problem.weight, problem.delta)
        found.append(polish(resample, descend(resample, theta)[0])[0])
    return np.array(found)


def standard_errors(problem: Problem, theta: Array, law: Law) -> tuple[dict[str, float | None], float]:
    """Standard errors from the Hessian at the minimum, and the condition number of the scaled normal matrix.

    For the M-estimator of these residuals, cov = s^2 H^-1 J'J H^-1 with s^2 = sum psi^2 / (n - p), H the exact Hessian
    of the objective (its second derivatives by central differences of the exact Jacobian); with least squares it is
    the usual s^2 (J'J)^-1. None where H is not safely positive definite. Of positive quantities by the delta method.
    """
    residual, jacobian = problem.residuals(theta)
    psi, inside = influence(residual, problem.delta), np.abs(residual) <= problem.delta
    hessian = jacobian.T @ (inside[:, None] * jacobian) - _curvature(problem, theta, psi)
    normal = jacobian.T @ jacobian
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-300))
    condition = float(np.linalg.cond(normal / np.outer(scale, scale)))
    freedom = len(residual) - len(theta)
    lowest = float(np.linalg.eigvalsh(hessian / np.outer(scale, scale)).min())
    if freedom < 1 or lowest < 1e-9 or inside.sum() < len(theta):
        return dict.fromkeys(law.quantities), condition
    inverse = np.linalg.inv(hessian)
    covariance = float(psi @ psi) / freedom * inverse @ normal @ inverse
    errors: dict[str, float | None] = {}
    for name, quantity in law.quantities.items():
        gradient = quantity.of(theta)[1]
        error = float(np.sqrt(gradient @ covariance @ gradient))
        errors[name] = error * quantity.value(theta) if quantity.log else error
    return errors, condition


def _curvature(problem: Problem, theta: Array, psi: Array) -> Array:
    """Sum over points of psi times the second derivatives of the law."""
    columns = []
    for index in range(len(theta)):
        step = np.zeros_like(theta)
        step[index] = 1e-5 * (1.0 + abs(theta[index]))
        change = problem.residuals(theta + step)[1] - problem.residuals(theta - step)[1]
        columns.append(psi @ change / (2.0 * step[index]))
    second = np.array(columns)
    return 0.5 * (second + second.T)
