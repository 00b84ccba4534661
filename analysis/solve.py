"""Minimising a sum of Huber losses of log residuals, freely or with one quantity held.

Two known traps are avoided by construction. Quasi-Newton codes compare the fall of the objective with max(|f|, 1), so
an objective of 1e-3 looks converged at once: here the objective is scaled to one. Parameters whose scales differ by
orders of magnitude stop such codes early: here the search is whitened by the local curvature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize

from analysis.laws import Array, Curve

LIMIT = 80.0
"""Entries of theta stay within it: exp(80) is beyond every quantity that can be measured."""

EXACT = 1e-22
"""Objective a point at which the law goes through every point: nothing is left to polish."""


@dataclass(frozen=True)
class Problem:
    """Points to fit: x (n, columns) as the law takes it, log y (n,), and how often each point counts."""

    curve: Curve
    x: Array
    log_y: Array
    weight: Array
    delta: float

    def residuals(self, theta: Array) -> tuple[Array, Array]:
        """log y - law (n,) and the law's Jacobian (n, p)."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            value, jacobian = self.curve(theta, self.x)
        return self.log_y - value, jacobian

    def objective(self, theta: Array) -> float:
        """Sum of Huber losses: r^2 / 2 inside delta, delta (|r| - delta / 2) beyond."""
        total = float(self.weight @ huber(self.residuals(theta)[0], self.delta))
        return total if np.isfinite(total) else np.inf

    def reweight(self, residual: Array) -> Array:
        """Weights with which least squares has the gradient of the Huber objective."""
        return self.weight * np.minimum(1.0, self.delta / np.maximum(np.abs(residual), 1e-300))

    def objective_and_gradient(self, theta: Array) -> tuple[float, Array]:
        """The objective and its exact gradient."""
        residual, jacobian = self.residuals(theta)
        total = float(self.weight @ huber(residual, self.delta))
        if not np.isfinite(total):
            return np.inf, np.zeros_like(theta)
        return total, -jacobian.T @ (self.weight * influence(residual, self.delta))


def huber(residual: Array, delta: float) -> Array:
    """Huber's loss of each residual; delta = inf gives least squares."""
    size = np.abs(residual)
    inside = np.minimum(size, delta)
    return inside * (size - 0.5 * inside)


def influence(residual: Array, delta: float) -> Array:
    """Derivative of Huber's loss: the residual, cut off at delta."""
    return np.clip(residual, -delta, delta)


def descend(problem: Problem, theta: Array, iterations: int = 80, tolerance: float = 1e-10) -> tuple[Array, float]:
    """Levenberg-Marquardt on reweighted least squares (each step lowers the Huber objective or is not taken)."""
    best, damping = problem.objective(theta), 1e-2
    for _ in range(iterations):
        residual, jacobian = problem.residuals(theta)
        weight = problem.reweight(residual)
        if not np.isfinite(best) or not np.isfinite(jacobian).all():
            break
        normal, right = jacobian.T @ (weight[:, None] * jacobian), jacobian.T @ (weight * residual)
        diagonal = np.diag(normal) + 1e-14 * np.trace(normal) + 1e-300
        fell = 0.0
        for _ in range(12):
            step = solve(normal + np.diag(damping * diagonal), right)
            trial = np.clip(theta + step, -LIMIT, LIMIT)
            value = problem.objective(trial)
            if value < best:
                fell, theta, best, damping = best - value, trial, value, max(damping / 6.0, 1e-12)
                break
            damping *= 5.0
        if fell <= tolerance * best:
            break
    return theta, best


def polish(problem: Problem, theta: Array) -> tuple[Array, float]:
    """BFGS from theta in whitened coordinates on the objective scaled to one; never returns anything worse."""
    start = problem.objective(theta)
    _, jacobian = problem.residuals(theta)
    if not np.isfinite(start) or start <= EXACT * len(problem.log_y) or not np.isfinite(jacobian).all():
        return theta, start
    normal = jacobian.T @ (problem.weight[:, None] * jacobian)
    values, vectors = np.linalg.eigh(normal)
    basis = vectors / np.sqrt(np.maximum(values, 1e-12 * values.max())) * np.sqrt(start)

    def scaled(z: Array) -> tuple[float, Array]:
        value, gradient = problem.objective_and_gradient(np.clip(theta + basis @ z, -LIMIT, LIMIT))
        return value / start, basis.T @ gradient / start

    result = scipy.optimize.minimize(scaled, np.zeros_like(theta), jac=True, method="BFGS",
                                     options={"gtol": 1e-9, "maxiter": 400})  # fmt: skip
    found = np.clip(theta + basis @ result.x, -LIMIT, LIMIT)
    value = problem.objective(found)
    return (found, value) if value < start else (theta, start)


def search(problem: Problem, starts: Array, tried: int = 24) -> tuple[Array, float, int, int]:
    """The best minimum found from the `tried` most promising starts: theta, objective, starts tried, starts agreeing.

    A start agrees when it ends within a ten-thousandth of the best objective.
    """
    first = np.array([problem.objective(start) for start in starts])
    order = np.argsort(first, kind="stable")[:tried]
    ends = [polish(problem, descend(problem, starts[index])[0]) for index in order if np.isfinite(first[index])]
    assert ends, "no start gives a finite objective"
    theta, best = min(ends, key=lambda end: end[1])
    agreeing = sum(value <= best * (1 + 1e-4) + 1e-14 for _, value in ends)
    return theta, best, len(ends), agreeing


def hold(
    problem: Problem,
    quantity: Callable[[Array], tuple[float, Array]],
    target: float,
    theta: Array,
    iterations: int = 60,
) -> tuple[Array, float]:
    """The smallest objective where quantity(theta) = target, from theta on; inf where the target cannot be reached.

    As descend, in the null space of the constraint, each step brought back onto it.
    """
    theta, reached = _retract(quantity, target, theta)
    if not reached:
        return theta, np.inf
    best, damping = problem.objective(theta), 1e-3
    for _ in range(iterations):
        residual, jacobian = problem.residuals(theta)
        if not np.isfinite(best) or not np.isfinite(jacobian).all():
            break
        gradient = quantity(theta)[1]
        free = np.linalg.qr(gradient[:, None], mode="complete")[0][:, 1:]  # directions that leave the quantity alone
        inner, weight = jacobian @ free, problem.reweight(residual)
        normal, right = inner.T @ (weight[:, None] * inner), inner.T @ (weight * residual)
        diagonal = np.diag(normal) + 1e-14 * np.trace(normal) + 1e-300
        fell = 0.0
        for _ in range(12):
            step = free @ solve(normal + np.diag(damping * diagonal), right)
            trial, reached = _retract(quantity, target, np.clip(theta + step, -LIMIT, LIMIT))
            value = problem.objective(trial) if reached else np.inf
            if value < best:
                fell, theta, best, damping = best - value, trial, value, max(damping / 6.0, 1e-12)
                break
            damping *= 5.0
        if fell <= 1e-9 * best:
            break
    return theta, best


def solve(matrix: Array, right: Array) -> Array:
    """The solution of a symmetric system, or of its least squares where it is singular."""
    try:
        return np.asarray(np.linalg.solve(matrix, right))
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0])


def _retract(quantity: Callable[[Array], tuple[float, Array]], target: float, theta: Array) -> tuple[Array, bool]:
    """theta moved, along the gradient, to where the quantity has its target value."""
    for _ in range(30):
        value, gradient = quantity(theta)
        gap = target - value
        if abs(gap) <= 1e-10 * (1.0 + abs(target)):
            return theta, True
        square = float(gradient @ gradient)
        if not np.isfinite(gap) or square < 1e-30:
            break
        step = gradient * (gap / square)
        theta = np.clip(theta + step * min(1.0, 3.0 / max(float(np.abs(step).max()), 1e-300)), -LIMIT, LIMIT)
    return theta, False
