"""Every warning and refusal of a fit, each on the data that should call it and not on data that should not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import checks
from analysis.compare import choose_form
from analysis.fit import Fit, fit_law
from scaling.errors import UserError

SIZES = np.geomspace(1e6, 1e9, 10)
INF = float("inf")


def line(x: np.ndarray = SIZES, noise: float = 0.005, seed: int = 0) -> pd.DataFrame:
    """y = 0.2 + 20 x^-0.25, each point off it by its own noise."""
    y = (0.2 + 20 * x**-0.25) * np.exp(np.random.default_rng(seed).normal(0, noise, len(x)))
    return pd.DataFrame({"x": x, "y": y})


def plane(samples: np.ndarray, noise: float = 0.005) -> pd.DataFrame:
    """A Chinchilla law at these samples (sizes, lengths) for five sizes."""
    n = np.repeat(np.geomspace(1e6, 1e8, 5), samples.shape[1])
    d = samples.ravel()
    y = (1.7 + 400 / n**0.35 + 400 / d**0.3) * np.exp(np.random.default_rng(0).normal(0, noise, len(n)))
    return pd.DataFrame({"n": n, "d": d, "y": y})


def said(fit: Fit, text: str) -> bool:
    return any(text in warning for warning in fit.warnings)


def test_plain_data_call_no_warning() -> None:
    assert fit_law(line(), "power-floor", "x", "y", delta=INF).warnings == ()
    lengths = np.tile(np.geomspace(1e7, 1e10, 5), (5, 1))
    assert fit_law(plane(lengths), "chinchilla", ("n", "d"), "y", delta=INF).warnings == ()


def test_few_distinct_x() -> None:
    assert said(fit_law(line(SIZES[:5]), "power-floor", "x", "y", delta=INF), "5 distinct x for 3 parameters")
    with pytest.raises(UserError, match="at least 4 distinct x for power-floor"):
        fit_law(line(SIZES[:3]), "power-floor", "x", "y")


def test_a_narrow_range() -> None:
    assert said(fit_law(line(np.geomspace(1e6, 3e6, 8)), "power", "x", "y", delta=INF), "x spans only a factor of 3")


def test_data_that_are_not_monotone() -> None:
    table = line()
    table.loc[4, "y"] *= 1.5
    assert said(fit_law(table, "power", "x", "y"), "y is not monotone in x: 1 of 9 steps go the other way")


def test_a_floor_that_collapses() -> None:
    flat = pd.DataFrame({"x": SIZES, "y": 20 * SIZES**-0.25 * np.exp(0.01 * np.sin(np.arange(10) * 2.3))})
    assert said(fit_law(flat, "power-floor", "x", "y", delta=INF), "the floor is not identified")


def test_starts_that_disagree() -> None:
    """Six parameters, eight points and more noise than signal: every start ends in another hollow."""
    table = line(SIZES[:8], noise=0.3, seed=1)
    fit = fit_law(table, "broken-power", "x", "y")
    assert fit.agreeing < fit.tried / 5
    assert said(fit, f"only {fit.agreeing} of {fit.tried} starts reach the best minimum")
    assert checks.warn_search(tried=24, agreeing=24) == []


def test_standard_errors_that_cannot_be_had() -> None:
    points = pd.DataFrame({"x": [1e6, 1e7, 1e8, 1e9], "y": [0.5, 0.4, 0.32, 0.25]})
    fit = fit_law(points, "power", "x", "y")
    assert said(fit, "no standard errors")
    assert fit.as_json()["parameters"]["c"]["standard_error"] is None


def test_standard_errors_that_rest_on_few_points() -> None:
    noisy = line(np.geomspace(1e6, 1e9, 30), noise=0.05)
    assert said(fit_law(noisy, "power", "x", "y", delta=1e-3), "of 30 points within delta")
    assert not said(fit_law(noisy, "power", "x", "y", delta=0.03), "within delta")


def test_parameters_that_are_barely_told_apart() -> None:
    assert "barely told apart" in checks.warn_errors({}, 1e13, np.zeros(9), 1.0, 2)[0]


def test_a_robust_and_a_plain_fit_that_disagree() -> None:
    """36 points on the law and four far off it: with a small delta the fit stays with the 36, the units' does not."""
    table = line(np.geomspace(1e6, 1e9, 40), noise=1e-4)
    table.loc[36:, "y"] *= 1.6
    fit = fit_law(table, "power-floor", "x", "y", delta=1e-5)
    assert said(fit, "robust and least-squares fits disagree")
    low, high = fit.parameters["c"].interval_95 or (0.0, 0.0)
    assert low <= fit.parameters["c"].value <= high
    assert fit.parameters["c"].value == pytest.approx(-0.25, abs=0.01)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.geomspace(1e7, 1e9, 5)[:, None], "two exponents cannot be told apart"),
        (np.geomspace(1e7, 1e9, 5)[:, None] * np.array([1.0, 1.02]), "almost a function of n"),
        (np.tile([1e7, 1e8], (5, 1)), "three or more distinct values of each"),
    ],
)
def test_sizes_and_samples_that_cannot_be_told_apart(samples: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_law(plane(samples), "chinchilla", ("n", "d"), "y")


def test_a_held_out_set_of_nothing() -> None:
    fit = fit_law(line(), "power", "x", "y", hold_out="x > 1e12")
    assert fit.hold_out is None
    assert said(fit, "no row is held out")
    with pytest.raises(UserError, match="holds for none"):
        choose_form(line(), ("power",), "x", "y", hold_out="x > 1e12")


def budgets(offsets: tuple[float, ...], sizes: int = 7) -> pd.DataFrame:
    """One parabola a budget, its best size shifted by a factor from the middle of its sizes."""
    rows = []
    for budget, offset in zip(np.geomspace(1e18, 1e21, len(offsets)), offsets, strict=True):
        for factor in np.geomspace(0.25, 4, sizes):
            loss = 3 * budget**-0.05 * np.exp(0.08 * np.log(factor / offset) ** 2)
            rows.append((0.1 * budget**0.48 * factor, budget, loss))
    return pd.DataFrame(rows, columns=["n", "c", "loss"])


def test_budgets_without_a_minimum_inside_are_left_out_and_too_few_refused() -> None:
    fit = fit_law(budgets((1, 1, 1, 9)), "isoflop", ("n", "c"), "loss")
    assert said(fit, "left out, minimum at the edge of the sizes: 1 budget (1.00e+21 FLOPs)")
    assert fit.parameters["a"].value == pytest.approx(0.48, rel=1e-5)
    with pytest.raises(UserError, match="2 usable budgets"):
        fit_law(budgets((1, 1, 9)), "isoflop", ("n", "c"), "loss")
    with pytest.raises(UserError, match="fewer than four sizes"):
        fit_law(budgets((1, 1, 1), sizes=3), "isoflop", ("n", "c"), "loss")
    upside_down = budgets((1, 1, 1)).assign(loss=lambda table: 1 / table["loss"])
    with pytest.raises(UserError, match="minimum at the edge"):
        fit_law(upside_down, "isoflop", ("n", "c"), "loss")
    with pytest.raises(UserError, match="no such option for isoflop"):
        fit_law(budgets((1, 1, 1)), "isoflop", ("n", "c"), "loss", bootstrap=10)
