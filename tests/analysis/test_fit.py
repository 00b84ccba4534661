"""fit_law against closed forms, published fits, and the known traps of such fits; what it refuses and warns of."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from analysis.fit import Fit, fit_groups, fit_law
from analysis.isoflop import envelope
from analysis.laws import LAWS
from analysis.solve import Problem
from scaling.errors import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "reference" / "scaling_data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the published points are not beside the checkout")
INF = float("inf")
DRAWS = 1000 if os.environ.get("ARMSCALE_FULL") else 300
HOFFMANN = np.array([np.log(1.69), np.log(406.4), np.log(410.7), 0.34, 0.28])


def sizes(seeds: int = 3, noise: float = 0.01, floor: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """y = floor + 20 x^-0.25 at five sizes and some seeds."""
    x = np.repeat([1e6, 3e6, 1e7, 3e7, 1e8], seeds)
    log_noise = np.random.default_rng(seed).normal(0, noise, len(x))
    return pd.DataFrame({"x": x, "y": (floor + 20 * x**-0.25) * np.exp(log_noise), "seed": np.tile(range(seeds), 5)})


def values(fit: Fit) -> dict[str, float]:
    return {name: estimate.value for name, estimate in fit.parameters.items()}


def chinchilla_points(rows: int) -> pd.DataFrame:
    table = pd.read_csv(SHARED / "epoch_chinchilla_245.csv").rename(columns={"Model Size": "parameters"})
    table["samples"] = table["Training FLOP"] / (6 * table["parameters"])
    return table.sort_values("loss").head(rows)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.floats(1e-3, 0.3))
def test_power_by_least_squares_is_the_closed_form_line(seed: int, noise: float) -> None:
    table = sizes(noise=noise, seed=seed)
    fit = fit_law(table, "power", "x", "y", delta=INF)
    design = np.stack([np.ones(len(table)), np.log(table["x"])], axis=1)
    solution, residual, _, _ = np.linalg.lstsq(design, np.log(table["y"]), rcond=None)
    covariance = np.linalg.inv(design.T @ design) * residual[0] / (len(table) - 2)
    assert values(fit) == pytest.approx({"b": np.exp(solution[0]), "c": solution[1]}, rel=1e-6)
    assert fit.objective == pytest.approx(residual[0] / 2, rel=1e-8)
    assert fit.parameters["c"].standard_error == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-6)


def test_the_objective_is_the_sum_of_huber_losses_of_log_residuals() -> None:
    table = sizes(noise=0.05)
    fit = fit_law(table, "power", "x", "y", delta=0.02)
    residual = np.abs(np.log(table["y"]) - np.log(values(fit)["b"] * table["x"] ** values(fit)["c"]))
    losses = np.where(residual <= 0.02, residual**2 / 2, 0.02 * (residual - 0.01))
    assert fit.objective == pytest.approx(losses.sum(), rel=1e-9)
    assert (residual > 0.02).any()
    assert (residual < 0.02).any()


@pytest.mark.parametrize("name", sorted(set(LAWS) - {"sigmoid"}))
def test_every_law_recovers_itself_from_a_cold_start(name: str) -> None:
    law = LAWS[name]
    truth = {
        "power": [3.0, -0.25],
        "power-floor": [3.0, -0.3, np.log(0.02)],
        "m3": [3.0, -0.3, np.log(1e-7)],
        "m4": [2.5, -0.4, np.log(0.8), np.log(0.9), np.log(0.05)],
        "shifted-power": [4.0, -0.4, np.log(2e6), np.log(0.02)],
        "broken-power": [1.0, -0.1, -0.3, np.log(1e7), np.log(0.3), np.log(0.03)],
        "chinchilla": HOFFMANN,
    }[name]
    grid = np.meshgrid(*[np.geomspace(1e5, 1e9, 12)] * len(law.x))
    x = np.stack([column.ravel() for column in grid], axis=1)
    y = np.exp(law.curve(np.array(truth), np.log(x))[0])
    table = pd.DataFrame(x, columns=list(law.x)).assign(y=y)
    fit = fit_law(table, name, law.x, "y")
    assert fit.objective < 1e-10
    assert np.allclose(fit.predict(table)["y"], y, rtol=1e-4)
    other = table[list(law.x)] * 1e-6  # the same in millions and per cent
    scaled = fit_law(other.assign(y=100 * y), name, law.x, "y")
    assert scaled.objective < 1e-10
    assert np.allclose(scaled.predict(other)["y"], 100 * y, rtol=1e-4)


def test_sigmoid_recovers_itself() -> None:
    loss = np.linspace(1.5, 4, 25)
    table = pd.DataFrame({"loss": loss, "top1": 0.01 + 0.8 / (1 + np.exp(3 * (loss - 2.5)))})
    assert values(fit_law(table, "sigmoid", "loss", "top1")) == pytest.approx(
        {"floor": 0.01, "top": 0.81, "slope": 3.0, "midpoint": 2.5}, rel=1e-3
    )


@needs_shared
def test_chinchilla_points_give_the_published_minimum_from_a_cold_start() -> None:
    fit = fit_law(chinchilla_points(240), "chinchilla", ("parameters", "samples"), "loss")
    assert fit.n == 240
    assert fit.objective <= 0.0010183
    assert fit.agreeing == fit.tried > 10
    found = values(fit)
    assert found["E"] == pytest.approx(1.8172, abs=1e-3)
    assert found["alpha"] == pytest.approx(0.3473, abs=6e-4)
    assert found["beta"] == pytest.approx(0.3672, abs=1.2e-3)
    assert found["a"] == pytest.approx(0.513, abs=2e-3)
    assert values(fit_law(chinchilla_points(245), "chinchilla", ("parameters", "samples"), "loss"))["beta"] == (
        pytest.approx(0.453, abs=1e-3)
    )


@needs_shared
@pytest.mark.slow
def test_bootstrap_errors_of_chinchilla_are_the_published_ones() -> None:
    fit = fit_law(chinchilla_points(240), "chinchilla", ("parameters", "samples"), "loss", bootstrap=DRAWS)
    for name, published in {"E": 0.026, "A": 124.5, "alpha": 0.015, "beta": 0.021, "a": 0.020, "B": 1293}.items():
        assert fit.parameters[name].standard_error == pytest.approx(published, rel=0.15), name
    assert fit.parameters["E"].interval_95 == pytest.approx((1.769, 1.871), abs=0.006 if DRAWS == 1000 else 0.012)


CURVES = {
    ("inet_10", "ViT/B/16"): (0.0462, 0.0462, 0.0462, 0.0144, 0.0050),
    ("inet_10", "BiT/50/1"): (0.0954, 0.0526, 0.0044, 0.0217, 0.0174),
    ("inet_10", "MiX/L/16"): (0.0983, 0.0983, 0.0983, 0.0107, 0.0163),
    ("inet_5", "ViT/B/16"): (0.0411, 0.0411, 0.0411, 0.0176, 0.0166),
    ("inet_25", "MiX/L/16"): (0.1028, 0.1028, 0.1028, 0.0054, 0.0109),
}


@needs_shared
@pytest.mark.parametrize(
    "curve",
    [
        pytest.param(curve, marks=[] if curve[0] == "inet_25" else pytest.mark.slow, id=" ".join(curve))
        for curve in CURVES
    ],
)
def test_learning_curves_extrapolate_as_the_reference_fit_does(curve: tuple[str, str]) -> None:
    table = pd.read_csv(SHARED / "imagenet_fewshot_learning_curves.csv")
    table = table[(table["Task"] == curve[0]) & (table["Model"] == curve[1])]
    for law, expected in zip(("power", "power-floor", "m3", "m4", "broken-power"), CURVES[curve], strict=True):
        fit = fit_law(table, law, "Seen Examples", "Loss", delta=INF, hold_out="Training == 0")
        assert fit.hold_out is not None
        if law == "power":
            assert round(fit.hold_out.log_rmse, 4) == expected
        else:
            assert fit.hold_out.log_rmse == pytest.approx(expected, rel=0.3), law


@needs_shared
def test_trap_a_quasi_newton_search_from_hoffmanns_values_stops_early_and_ours_does_not() -> None:
    table = chinchilla_points(240)
    x, log_y = np.log(table[["parameters", "samples"]].to_numpy()), np.log(table["loss"].to_numpy())
    problem = Problem(LAWS["chinchilla"].curve, x, log_y, np.ones(240), 1e-3)
    naive = scipy.optimize.minimize(problem.objective_and_gradient, HOFFMANN, jac=True, method="L-BFGS-B")
    assert naive.fun > 1.05 * 0.0010183
    ours = fit_law(table, "chinchilla", ("parameters", "samples"), "loss")
    assert ours.objective < naive.fun / 1.05


def test_trap_curve_fit_returns_its_start_and_ours_does_not() -> None:
    table = sizes(noise=1e-4, floor=0.2)
    start = (1.0, -3.0, 1.0)
    with pytest.warns(scipy.optimize.OptimizeWarning):
        naive, _ = scipy.optimize.curve_fit(
            lambda x, b, c, floor: floor + b * x**c, table["x"], table["y"], p0=start, maxfev=20_000
        )
    assert tuple(naive[:2]) == start[:2]
    assert values(fit_law(table, "power-floor", "x", "y")) == pytest.approx(
        {"b": 20, "c": -0.25, "floor": 0.2}, rel=0.05
    )


def test_trap_taking_the_floor_off_first_collapses_it_and_ours_does_not() -> None:
    """A line through log(y - floor) fits best where noise is amplified least: often at no floor at all."""
    collapsed, ours, inside = [], [], 0
    for seed in range(9):
        table = sizes(noise=0.02, floor=0.2, seed=seed)
        log_x, floors = np.log(table["x"]), np.linspace(0, 0.95, 40) * table["y"].min()
        rests = [np.log(table["y"] - floor) for floor in floors]
        left = [np.square(rest - np.polyval(np.polyfit(log_x, rest, 1), log_x)).sum() for rest in rests]
        collapsed.append(floors[np.argmin(left)])
        estimate = fit_law(table, "power-floor", "x", "y").parameters["floor"]
        ours.append(estimate.value)
        assert estimate.interval_95 is not None
        inside += estimate.interval_95[0] < 0.2 < estimate.interval_95[1]
    assert np.median(collapsed) < 0.5 * 0.2
    assert np.median(ours) == pytest.approx(0.2, rel=0.25)
    assert inside >= 8


def test_a_floor_that_the_data_do_not_show_is_open_below_and_warned_of() -> None:
    fit = fit_law(sizes(noise=0.02), "power-floor", "x", "y")
    interval = fit.parameters["floor"].interval_95
    assert interval is not None
    assert interval[0] < 1e-6
    assert any("floor is not identified" in warning for warning in fit.warnings)


def test_predictions_carry_the_interval_and_hold_the_truth_when_noise_is_small() -> None:
    fit = fit_law(sizes(noise=1e-3, floor=0.2), "power-floor", "x", "y")
    row = fit.predict({"x": [1e9]}).iloc[0]
    assert row["low"] < 0.2 + 20 * 1e9**-0.25 < row["high"]
    assert row["low"] < row["y"] < row["high"]


def test_held_out_points_are_scored_and_not_fitted() -> None:
    table = sizes(noise=0.01, seed=4)
    fit = fit_law(table, "power", "x", "y", hold_out="x > 5e7")
    alone = fit_law(table[table["x"] < 5e7], "power", "x", "y")
    assert values(fit) == values(alone)
    assert fit.n == 12
    assert fit.hold_out is not None
    held = table[table["x"] > 5e7]
    error = np.log(held["y"]) - np.log(alone.predict(held)["y"].to_numpy())
    assert fit.hold_out.log_rmse == pytest.approx(np.sqrt(np.mean(error**2)))
    assert fit.hold_out.baseline_log_rmse > 3 * fit.hold_out.log_rmse


def test_a_plot_shows_every_point_and_the_law_from_the_smallest_to_beyond_the_largest() -> None:
    fit = fit_law(sizes(noise=0), "power", "x", "y", hold_out="x > 5e7")
    axes = Figure().subplots()
    fit.plot(axes, beyond=3)
    solid, dashed, *points = axes.get_lines()
    assert [line.get_xdata()[[0, -1]].tolist() for line in (solid, dashed)] == [
        pytest.approx([1e6, 3e7]),
        pytest.approx([3e7, 3e8]),
    ]
    assert dashed.get_ydata() == pytest.approx(20 * dashed.get_xdata() ** -0.25)
    assert [len(line.get_xdata()) for line in points] == [12, 3]
    assert points[1].get_markerfacecolor() == "none" != points[0].get_markerfacecolor()
    with pytest.raises(UserError, match="one variable"):
        replace(fit, x=("x", "y")).plot(axes)


def test_groups_are_fitted_each_on_its_own() -> None:
    table = pd.concat([sizes(seed=1).assign(strategy="ar"), sizes(seed=2).assign(strategy="mae")])
    fits = fit_groups(table, "strategy", "power", "x", "y")
    assert list(fits) == ["ar", "mae"]
    assert values(fits["ar"]) == values(fit_law(sizes(seed=1), "power", "x", "y"))


def test_a_group_can_be_excluded_as_a_whole() -> None:
    """Of the third no fit is possible."""
    parts = [sizes(seed=1).assign(strategy="ar"), sizes(seed=2).assign(strategy="mae")]
    table = pd.concat([*parts, sizes(seed=3).head(1).assign(strategy="scratch")])
    fits = fit_groups(table, "strategy", "power", "x", "y", exclude="strategy == 'scratch'")
    assert list(fits) == ["ar", "mae"]
    assert [fit.excluded for fit in fits.values()] == [0, 0]
    with pytest.raises(UserError, match="strategy = scratch"):
        fit_groups(table, "strategy", "power", "x", "y", exclude="strategy == 'none'")
    with pytest.raises(UserError, match="that is not excluded"):
        fit_groups(table, "strategy", "power", "x", "y", exclude="x > 0")


def test_the_bootstrap_is_seeded_and_resamples_whole_sizes_when_asked() -> None:
    table = sizes()
    one, two = (fit_law(table, "power", "x", "y", bootstrap=20, seed=3).as_json() for _ in range(2))
    assert one == two
    noisy = sizes(noise=0.0).assign(y=lambda t: t["y"] * np.exp(0.05 * np.sin(np.log(t["x"]) * 7)))
    by_row = fit_law(noisy, "power", "x", "y", bootstrap=100)
    by_size = fit_law(noisy, "power", "x", "y", bootstrap=100, resample_by="x")
    assert by_size.parameters["c"].standard_error > 1.3 * by_row.parameters["c"].standard_error  # type: ignore[operator]


def test_the_result_is_json_with_the_contracts_keys() -> None:
    result = json.loads(
        json.dumps(fit_law(sizes(), "power-floor", "x", "y", hold_out="x > 5e7").as_json(), allow_nan=False)
    )
    assert list(result) == [
        "law", "n", "objective", "delta", "parameters", "starts", "hold_out", "excluded", "warnings"
    ]  # fmt: skip
    assert set(result["parameters"]) == {"b", "c", "floor"}
    assert set(result["parameters"]["b"]) == {"value", "standard_error", "interval_95"}
    assert set(result["starts"]) == {"tried", "agreeing"}
    assert set(result["hold_out"]) == {"n", "log_rmse", "baseline_log_rmse"}


def test_rows_without_numbers_and_unfinished_runs_are_left_out_and_counted() -> None:
    table = sizes().assign(state="completed")
    table.loc[0, "y"] = np.nan
    table.loc[1, "state"] = "running"
    fit = fit_law(table, "power", "x", "y", exclude="seed == 2")
    assert fit.excluded == 2 + 5
    assert fit.n == 8
    assert len([warning for warning in fit.warnings if "left out" in warning]) == 2


REFUSED = {
    "law": ({"law": "cubic"}, "isoflop"),
    "column": ({"y": "z"}, "no such column"),
    "text": ({"y": "name"}, "column of numbers"),
    "query": ({"exclude": "nothing > 3"}, "pandas query"),
    "delta": ({"delta": 0.0}, "above 0"),
    "variables": ({"law": "chinchilla"}, "2 columns"),
    "resample": ({"resample_by": "seed"}, "bootstrap"),
    "few": ({"exclude": "x > 2e6"}, "at least 3 distinct x"),
    "budgets": ({"law": "isoflop", "x": ("x", "flops")}, "three budgets"),
    "single": ({"law": "chinchilla", "x": ("x", "ratio")}, "several ratio for each x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fitted_is_refused_with_the_reason(case: str) -> None:
    table = sizes(seeds=5).assign(name="run", flops=lambda t: t["x"], ratio=lambda t: 20 * t["x"])
    table = pd.concat([table, table.assign(x=table["x"] * 1.5, ratio=table["ratio"] * 3)])
    given, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        fit_law(table, **{"law": "power", "x": "x", "y": "y", **given})  # type: ignore[arg-type]


def test_different_quantities_are_never_fitted_together() -> None:
    table = sizes().assign(top1_error=lambda t: t["y"], final_loss=lambda t: t["y"], stage="pretrain")
    table["protocol"] = np.where(table["seed"] == 0, "knn", "finetune")
    table["strategy"] = np.where(table["seed"] == 0, "ar", "mae")
    with pytest.raises(UserError, match="one protocol"):
        fit_law(table, "power", "x", "top1_error")
    with pytest.raises(UserError, match="one objective"):
        fit_law(table, "power", "x", "final_loss")
    assert set(fit_groups(table, "strategy", "power", "x", "final_loss")) == {"ar", "mae"}


def test_data_that_are_not_monotone_are_warned_of() -> None:
    table = sizes(noise=0)
    table.loc[table["x"] == 1e7, "y"] *= 2
    assert any("not monotone" in warning for warning in fit_law(table, "power", "x", "y").warnings)


def isoflop_table(edge: bool = False) -> pd.DataFrame:
    rows = []
    for budget in np.geomspace(1e18, 1e21, 4):
        best = 0.1 * budget**0.48
        for factor in np.geomspace(1.2 if edge else 0.25, 8 if edge else 4, 7):
            rows.append((best * factor, budget, 3 * budget**-0.05 * np.exp(0.08 * np.log(factor) ** 2)))
    return pd.DataFrame(rows, columns=["parameters", "flops", "loss"])


def test_isoflop_finds_the_exponent_of_the_best_size() -> None:
    fit = fit_law(isoflop_table(), "isoflop", ("parameters", "flops"), "loss")
    assert values(fit) == pytest.approx({"k": 0.1, "a": 0.48}, rel=1e-5)
    assert fit.n == 28
    assert fit.predict({"flops": [1e22]})["y"].item() == pytest.approx(0.1 * 1e22**0.48, rel=1e-4)


def test_isoflop_refuses_minima_at_the_edge() -> None:
    with pytest.raises(UserError, match="minimum at the edge"):
        fit_law(isoflop_table(edge=True), "isoflop", ("parameters", "flops"), "loss")


def test_the_envelope_is_the_lowest_of_the_curves_where_several_ran() -> None:
    rows = []
    for parameters in (1e6, 4e6, 1.6e7):
        for samples in np.geomspace(1e5, 1e9, 60):
            loss = 1.5 + 400 / parameters**0.35 + 400 / samples**0.35
            rows.append((f"run-{parameters:g}", parameters, 6 * parameters * samples, loss))
    curves = pd.DataFrame(rows, columns=["run", "parameters", "flops", "loss"])
    best = envelope(curves, "parameters", "flops", "loss")
    assert best["parameters"].is_monotonic_increasing
    assert set(best["parameters"]) == {1e6, 4e6, 1.6e7}
    for row in best.iloc[::20].itertuples():
        others = [1.5 + 400 / n**0.35 + 400 / (row.flops / (6 * n)) ** 0.35 for n in (1e6, 4e6, 1.6e7)]
        assert row.loss == pytest.approx(min(others), rel=2e-3)
    assert best["flops"].min() >= 6 * 4e6 * 1e5 * 0.99
