"""Laws: their derivatives against finite differences, their forms against the printed formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.laws import LAWS, Array, Law

STEP = 1e-6


def example(law: Law, seed: int) -> tuple[Array, Array]:
    """x (as the law takes it) and a decreasing log y with a floor, from the seed."""
    generator = np.random.default_rng(seed)
    if not law.log_x:
        values = generator.uniform(1, 4, (20, 1))
        return values, np.log(0.1 + 0.8 / (1 + np.exp(2 * (values[:, 0] - 2))))
    x = np.log(10 ** generator.uniform(5, 9, (20, len(law.x))))
    return x, np.log(0.2 + 3 * np.exp(-0.3 * (x.sum(axis=1) - x.sum(axis=1).min())))


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(sorted(LAWS)), seed=st.integers(0, 10_000))
def test_derivatives_are_exact(name: str, seed: int) -> None:
    law = LAWS[name]
    x, log_y = example(law, seed)
    starts = law.starts(x, log_y)
    theta = starts[seed % len(starts)]
    for of in [lambda t: law.curve(t, x), *(quantity.of for quantity in law.quantities.values())]:
        numeric = np.stack([np.asarray(of(theta + e)[0]) - of(theta - e)[0] for e in STEP * np.eye(law.parameters)], -1)
        exact = of(theta)[1]
        assert np.abs(exact - numeric / (2 * STEP)).max() < 1e-6 * (1 + np.abs(exact).max())


FORMULAS = {
    "power": lambda p, x: p["b"] * x ** p["c"],
    "power-floor": lambda p, x: p["floor"] + p["b"] * x ** p["c"],
    "m3": lambda p, x: p["b"] * (1 / x + p["g"]) ** -p["c"],
    "shifted-power": lambda p, x: p["floor"] + p["b"] * (x + p["shift"]) ** p["c"],
    "broken-power": lambda p, x: (
        p["floor"]
        + p["b"] * x ** p["c"] * (1 + (x / p["break"]) ** (1 / p["sharpness"])) ** (p["change"] * p["sharpness"])
    ),
    "sigmoid": lambda p, x: p["floor"] + (p["top"] - p["floor"]) / (1 + np.exp(p["slope"] * (x - p["midpoint"]))),
    "chinchilla": lambda p, n, d: p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"],
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_the_curve_is_the_printed_formula(name: str) -> None:
    law = LAWS[name]
    x, log_y = example(law, 3)
    for theta in law.starts(x, log_y)[::7]:
        quantities = {key: quantity.value(theta) for key, quantity in law.quantities.items()}
        plain = np.exp(x) if law.log_x else x
        expected = FORMULAS[name](quantities, *plain.T)
        assert np.allclose(np.exp(law.curve(theta, x)[0]), expected, rtol=1e-9)


def test_m4_solves_its_implicit_equation() -> None:
    law = LAWS["m4"]
    x, log_y = example(law, 5)
    for theta in law.starts(x, log_y)[::5]:
        p = {key: quantity.value(theta) for key, quantity in law.quantities.items()}
        y = np.exp(law.curve(theta, x)[0])
        left = np.log(y - p["floor"]) - p["k"] * np.log(p["top"] - y)
        inside = (y - p["floor"] > 1e-9 * y) & (p["top"] - y > 1e-9 * y)
        assert inside.sum() > 5
        assert np.allclose(left[inside], np.log(p["b"]) + p["c"] * x[inside, 0], atol=1e-5)


def test_chinchilla_allocation_is_the_exponent_of_the_best_size() -> None:
    """a is checked against the optimum found on a grid at two budgets, C = 6 N D."""
    theta = np.array([np.log(1.8), np.log(480.0), np.log(2100.0), 0.35, 0.37])
    budgets, best = np.array([1e19, 1e23]), []
    for budget in budgets:
        log_n = np.linspace(np.log(1e6), np.log(1e13), 400_001)
        x = np.stack([log_n, np.log(budget / 6) - log_n], axis=1)
        best.append(log_n[LAWS["chinchilla"].curve(theta, x)[0].argmin()])
    slope = (best[1] - best[0]) / np.log(budgets[1] / budgets[0])
    assert slope == pytest.approx(LAWS["chinchilla"].quantities["a"].value(theta), abs=1e-4)
