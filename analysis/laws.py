"""The laws: log y as a function of parameters and x, with exact derivatives, and where a search for them may start.

Positive parameters are kept as logarithms inside (theta), so that no search can leave what is meaningful; people see
the quantities by name. Exponents follow y = b x^c, so c is negative where more helps to lower y.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.errors import UserError

Array = NDArray[np.float64]
Curve = Callable[[Array, Array], tuple[Array, Array]]
"""(theta (p,), x (n, columns)) to log y (n,) and its derivatives in theta (n, p)."""


@dataclass(frozen=True)
class Quantity:
    """A named number: `of(theta)` gives it and its gradient (p,); with `log`, the logarithm of a positive one."""

    of: Callable[[Array], tuple[float, Array]]
    log: bool = False

    def value(self, theta: Array) -> float:
        """The number as people read it."""
        inner = self.of(theta)[0]
        return float(np.exp(inner)) if self.log else float(inner)


@dataclass(frozen=True)
class Law:
    """One law. `x` names its variables in order; they are passed as logarithms unless `log_x` is off."""

    name: str
    formula: str
    source: str
    x: tuple[str, ...]
    curve: Curve
    starts: Callable[[Array, Array], Array]
    quantities: dict[str, Quantity]
    parameters: int
    log_x: bool = True


def entry(index: int, log: bool = False) -> Quantity:
    """theta[index] itself, or exp(theta[index])."""

    def of(theta: Array) -> tuple[float, Array]:
        gradient = np.zeros_like(theta)
        gradient[index] = 1.0
        return float(theta[index]), gradient

    return Quantity(of, log)


def softplus(z: Array) -> tuple[Array, Array]:
    """log(1 + exp z) and its derivative."""
    return np.logaddexp(0.0, z), 0.5 * (1.0 + np.tanh(0.5 * z))


def _add(first: Array, second: Array) -> tuple[Array, Array]:
    """log(exp first + exp second), and the share of second in the sum."""
    total, share = softplus(second - first)
    return first + total, share


# theta = (log b, c)
def _power(theta: Array, x: Array) -> tuple[Array, Array]:
    log_x = x[:, 0]
    return theta[0] + theta[1] * log_x, np.stack([np.ones_like(log_x), log_x], axis=1)


def _with_floor(inner: Curve) -> Curve:
    """floor + inner, log floor being the last entry of theta."""

    def curve(theta: Array, x: Array) -> tuple[Array, Array]:
        value, jacobian = inner(theta[:-1], x)
        total, share = _add(np.full_like(value, theta[-1]), value)
        return total, np.column_stack([share[:, None] * jacobian, 1.0 - share])

    return curve


# theta = (log b, c, log g)
def _m3(theta: Array, x: Array) -> tuple[Array, Array]:
    inner, share = _add(-x[:, 0], np.full(len(x), theta[2]))
    value = theta[0] - theta[1] * inner
    return value, np.stack([np.ones_like(inner), -inner, -theta[1] * share], axis=1)


# theta = (log b, c, log k, log (top - floor), log floor)
def _m4(theta: Array, x: Array) -> tuple[Array, Array]:
    """Solves (y - floor) / (top - y)^k = b x^c: with y = floor + (top - floor) s(z), s the logistic function,

    log s(z) - k log s(-z) = log b + c log x - (1 - k) log(top - floor), whose left side rises in z.
    """
    log_x, k, width = x[:, 0], np.exp(theta[2]), theta[3]
    right = theta[0] + theta[1] * log_x - (1.0 - k) * width
    z = np.where(right > 0, right / k, right)
    for _ in range(60):
        down, up = softplus(-z)[0], softplus(z)
        step = (right + down - k * up[0]) / (1.0 - up[1] + k * up[1])
        z = z + step
        if np.max(np.abs(step)) < 1e-13 * (1.0 + np.max(np.abs(z))):
            break
    (down, _), (up_value, logistic) = softplus(-z), softplus(z)
    slope = 1.0 - logistic + k * logistic
    by_k = k * (width - up_value) / slope  # d z / d log k
    dz = np.stack([1.0 / slope, log_x / slope, by_k, -(1.0 - k) / slope, np.zeros_like(z)], axis=1)
    part = width - down  # log of y - floor
    by_part = (1.0 - logistic)[:, None] * dz
    by_part[:, 3] += 1.0
    total, share = _add(np.full_like(part, theta[4]), part)
    jacobian = share[:, None] * by_part
    jacobian[:, 4] = 1.0 - share
    return total, jacobian


def _m4_top() -> Quantity:
    def of(theta: Array) -> tuple[float, Array]:
        top = float(np.logaddexp(theta[3], theta[4]))
        return top, np.array([0.0, 0.0, 0.0, np.exp(theta[3] - top), np.exp(theta[4] - top)])

    return Quantity(of, log=True)


# theta = (log b, c, log shift)
def _shifted(theta: Array, x: Array) -> tuple[Array, Array]:
    inner, share = _add(x[:, 0], np.full(len(x), theta[2]))
    return theta[0] + theta[1] * inner, np.stack([np.ones_like(inner), inner, theta[1] * share], axis=1)


# theta = (log b, c, change, log break, log sharpness)
def _broken(theta: Array, x: Array) -> tuple[Array, Array]:
    log_x, width = x[:, 0], np.exp(theta[4])
    z = (log_x - theta[3]) / width
    bend, slope = softplus(z)
    value = theta[0] + theta[1] * log_x + theta[2] * width * bend
    by_width = theta[2] * width * (bend - slope * z)
    return value, np.stack([np.ones_like(z), log_x, width * bend, -theta[2] * slope, by_width], axis=1)


# theta = (log E, log A, log B, alpha, beta)
def _chinchilla(theta: Array, x: Array) -> tuple[Array, Array]:
    terms = np.stack([np.full(len(x), theta[0]), theta[1] - theta[3] * x[:, 0], theta[2] - theta[4] * x[:, 1]])
    top = terms.max(axis=0)
    parts = np.exp(terms - top)
    total = parts.sum(axis=0)
    share = parts / total
    jacobian = np.stack([share[0], share[1], share[2], -share[1] * x[:, 0], -share[2] * x[:, 1]], axis=1)
    return top + np.log(total), jacobian


def _allocation() -> Quantity:
    """a = beta / (alpha + beta): the compute-optimal N grows as C^a (Hoffmann et al. 2022, equation 4)."""

    def of(theta: Array) -> tuple[float, Array]:
        total = theta[3] + theta[4]
        gradient = np.array([0.0, 0.0, 0.0, -theta[4] / total**2, theta[3] / total**2])
        return float(theta[4] / total), gradient

    return Quantity(of)


# theta = (log height, slope, midpoint); with the floor log floor
def _sigmoid(theta: Array, x: Array) -> tuple[Array, Array]:
    z = theta[1] * (x[:, 0] - theta[2])
    value, rising = softplus(z)
    return theta[0] - value, np.stack([np.ones_like(z), -rising * (x[:, 0] - theta[2]), rising * theta[1]], axis=1)


def _sigmoid_top() -> Quantity:
    def of(theta: Array) -> tuple[float, Array]:
        top = float(np.logaddexp(theta[0], theta[3]))
        return top, np.array([np.exp(theta[0] - top), 0.0, 0.0, np.exp(theta[3] - top)])

    return Quantity(of, log=True)


def line(log_x: Array, log_y: Array) -> tuple[float, float]:
    """Intercept and slope of least squares."""
    centred = log_x - log_x.mean()
    slope = float(centred @ log_y / max(float(centred @ centred), 1e-300))
    return float(log_y.mean() - slope * log_x.mean()), slope


SLOPES = (0.3, 0.6, 1.0, 1.5, 2.5, 4.0)
FLOORS = (1e-3, 0.3, 0.6, 0.8, 0.95)


def _power_starts(x: Array, log_y: Array) -> Array:
    return np.array([line(x[:, 0], log_y)])


def _floor_starts(x: Array, log_y: Array) -> Array:
    """(log b, c, log floor): for each floor and slope, the b that goes through the middle of what is left."""
    log_x, slope = x[:, 0], line(x[:, 0], log_y)[1]
    starts = []
    for share, factor in itertools.product(FLOORS, SLOPES):
        rest = np.log(np.exp(log_y) - share * np.exp(log_y.min()))
        c = slope * factor
        starts.append((float(np.median(rest - c * log_x)), c, float(np.log(share) + log_y.min())))
    return np.array(starts)


def _m3_starts(x: Array, log_y: Array) -> Array:
    log_x, slope = x[:, 0], line(x[:, 0], log_y)[1]
    places = (*np.quantile(-log_x, (0.05, 0.3, 0.6, 0.9)), -log_x.max() - 4.0)
    starts = []
    for log_g, factor in itertools.product(places, (0.6, 1.0, 1.5, 2.5, 4.0)):
        inner = np.logaddexp(-log_x, log_g)
        starts.append((float(np.median(log_y + slope * factor * inner)), slope * factor, float(log_g)))
    return np.array(starts)


def _m4_starts(x: Array, log_y: Array) -> Array:
    y, log_x, slope = np.exp(log_y), x[:, 0], line(x[:, 0], log_y)[1]
    starts = []
    for share, above, k, factor in itertools.product(
        (1e-3, 0.5, 0.9), (1.003, 1.1, 2.0), (0.3, 1.0, 2.0), (1.0, 2.0, 4.0)
    ):
        floor, top, c = share * y.min(), above * y.max(), slope * factor
        left = np.log(y - floor) - k * np.log(top - y)
        starts.append((float(np.median(left - c * log_x)), c, np.log(k), np.log(top - floor), np.log(floor)))
    return np.array(starts)


def _shifted_starts(x: Array, log_y: Array) -> Array:
    shifts = (x[:, 0].min() - 4.0, *np.quantile(x[:, 0], (0.1, 0.5, 0.9)))
    starts = []
    for log_shift in shifts:
        inner = np.logaddexp(x, log_shift)
        starts += [(b, c, log_shift, floor) for b, c, floor in _floor_starts(inner, log_y)]
    return np.array(starts)


def _broken_starts(x: Array, log_y: Array) -> Array:
    log_x = x[:, 0]
    starts = []
    for place, width, share in itertools.product((0.2, 0.4, 0.6, 0.8), (0.2, 1.0), (1e-3, 0.5, 0.9)):
        at = float(np.quantile(log_x, place))
        rest = np.log(np.exp(log_y) - share * np.exp(log_y.min()))
        design = np.stack([np.ones_like(log_x), log_x, width * softplus((log_x - at) / width)[0]], axis=1)
        b, c, change = np.linalg.lstsq(design, rest, rcond=None)[0]
        starts.append((b, c, change, at, np.log(width), np.log(share) + log_y.min()))
    return np.array(starts)


def _chinchilla_starts(x: Array, log_y: Array) -> Array:
    """For each floor and pair of exponents, A and B by non-negative shares of what is left above the floor."""
    y = np.exp(log_y)
    starts = []
    for share, alpha, beta in itertools.product((0.05, 0.4, 0.7, 0.9), (0.15, 0.3, 0.5, 0.8), (0.15, 0.3, 0.5, 0.8)):
        floor = share * y.min()
        design = np.exp(np.stack([-alpha * x[:, 0], -beta * x[:, 1]], axis=1))
        scale = design.mean(axis=0)
        weights = np.linalg.lstsq(design / scale / y[:, None], (y - floor) / y, rcond=None)[0]
        weights = np.maximum(weights, 0.02 * float(np.mean(y - floor))) / scale
        starts.append((np.log(floor), *np.log(weights), alpha, beta))
    return np.array(starts)


def _sigmoid_starts(x: Array, log_y: Array) -> Array:
    y, values = np.exp(log_y), x[:, 0]
    spread, direction = float(np.ptp(values)) or 1.0, -np.sign(line(values, log_y)[1]) or 1.0
    starts = []
    for share, above, steep, place in itertools.product(
        (1e-2, 0.5, 0.95), (1.02, 1.3), (2.0, 5.0, 12.0), (0.25, 0.5, 0.75)
    ):
        floor = share * y.min()
        middle = float(np.quantile(values, place))
        starts.append((np.log(above * y.max() - floor), direction * steep / spread, middle, np.log(floor)))
    return np.array(starts)


_BASE = {"b": entry(0, log=True), "c": entry(1)}
_ONE = ("x",)
_ALABDULMOHSIN = "Alabdulmohsin, Neyshabur and Zhai 2022"

LAWS = {
    law.name: law
    for law in (
        Law("power", "y = b x^c", "", _ONE, _power, _power_starts, _BASE, 2),
        Law("power-floor", "y = floor + b x^c", f"M2 of {_ALABDULMOHSIN}", _ONE, _with_floor(_power), _floor_starts,
            {**_BASE, "floor": entry(2, log=True)}, 3),
        Law("m3", "y = b (1/x + g)^(-c)", f"M3 of {_ALABDULMOHSIN}", _ONE, _m3, _m3_starts,
            {**_BASE, "g": entry(2, log=True)}, 3),
        Law("m4", "(y - floor) / (top - y)^k = b x^c", f"M4 of {_ALABDULMOHSIN}", _ONE, _m4, _m4_starts,
            {**_BASE, "floor": entry(4, log=True), "top": _m4_top(), "k": entry(2, log=True)}, 5),
        Law("shifted-power", "y = floor + b (x + shift)^c", "Zhai et al. 2022, equation 1", _ONE, _with_floor(_shifted),
            _shifted_starts, {**_BASE, "shift": entry(2, log=True), "floor": entry(3, log=True)}, 4),
        Law("broken-power", "y = floor + b x^c (1 + (x / break)^(1 / sharpness))^(change * sharpness)",
            "one break, Caballero et al. 2023", _ONE, _with_floor(_broken), _broken_starts,
            {**_BASE, "change": entry(2), "break": entry(3, log=True), "sharpness": entry(4, log=True),
             "floor": entry(5, log=True)}, 6),
        Law("chinchilla", "y = E + A / N^alpha + B / D^beta", "Hoffmann et al. 2022, approach 3",
            ("parameters", "samples"), _chinchilla, _chinchilla_starts,
            {"E": entry(0, log=True), "A": entry(1, log=True), "B": entry(2, log=True), "alpha": entry(3),
             "beta": entry(4), "a": _allocation()}, 5),
        Law("sigmoid", "y = floor + (top - floor) / (1 + exp(slope (x - midpoint)))", "loss to accuracy", _ONE,
            _with_floor(_sigmoid), _sigmoid_starts,
            {"floor": entry(3, log=True), "top": _sigmoid_top(), "slope": entry(1), "midpoint": entry(2)}, 4,
            log_x=False),
    )
}  # fmt: skip


def find_law(name: str, more: Iterable[str] = ()) -> Law:
    """The law of that name."""
    if name not in LAWS:
        raise UserError("law", name, (*LAWS, *more))
    return LAWS[name]
