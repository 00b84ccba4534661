"""Comparisons of fits against t tests, known crossings and known corrections."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analysis.compare import choose_form, compare_exponents, compare_strategies, find_crossing, holm, roll_out
from analysis.fit import Fit, fit_groups, fit_law
from scaling.errors import UserError

SIZES = np.array([1e6, 3e6, 1e7, 3e7, 1e8])


def study(exponents: dict[str, float], shared: float = 0.0, own: float = 0.01, seed: int = 0) -> pd.DataFrame:
    """Three seeds a size; `shared` noise moves all strategies together, `own` each alone."""
    generator, rows = np.random.default_rng(seed), []
    common = generator.normal(0, shared, (5, 3))
    for strategy, exponent in exponents.items():
        log_y = np.log(20) + exponent * np.log(SIZES)[:, None] + common + generator.normal(0, own, (5, 3))
        rows += [(strategy, SIZES[i], k, np.exp(log_y[i, k])) for i in range(5) for k in range(3)]
    return pd.DataFrame(rows, columns=["strategy", "x", "seed", "y"])


def fits(table: pd.DataFrame, law: str = "power") -> dict[str, Fit]:
    return fit_groups(table, "strategy", law, "x", "y")


def paired_test(table: pd.DataFrame) -> tuple[float, float, float]:
    """Difference of slopes, half its 95 % interval and p: a straight line through log ratios of the size means."""
    means = np.log(table["y"]).groupby([table["strategy"], table["x"]]).mean().unstack(0)
    line = scipy.stats.linregress(np.log(means.index), means["ar"] - means["mae"])
    return line.slope, scipy.stats.t.ppf(0.975, len(means) - 2) * line.stderr, line.pvalue


def test_paired_difference_of_power_laws_is_the_t_test_of_log_ratios() -> None:
    table = study({"ar": -0.25, "mae": -0.22}, shared=0.03)
    row = compare_exponents(fits(table), paired=True).iloc[0]
    slope, half, p = paired_test(table)
    assert row["difference"] == pytest.approx(slope, abs=1e-8)
    assert (row["low"], row["high"]) == pytest.approx((slope - half, slope + half), abs=1e-5)
    assert row["p"] == pytest.approx(p, rel=1e-3)


def test_pairing_by_seed_narrows_what_is_shared() -> None:
    table = study({"ar": -0.25, "mae": -0.22}, shared=0.05, own=0.003)
    alone, paired = (compare_exponents(fits(table), paired=flag).iloc[0] for flag in (False, True))
    assert paired["high"] - paired["low"] < 0.3 * (alone["high"] - alone["low"])


def test_differences_of_equal_exponents_cover_zero_as_often_as_they_say() -> None:
    inside = 0
    for seed in range(40):
        row = compare_exponents(fits(study({"ar": -0.25, "mae": -0.25}, seed=seed))).iloc[0]
        inside += row["low"] < 0 < row["high"]
    assert inside >= 35


def test_holm_is_the_step_down_rule() -> None:
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    table = compare_exponents(fits(study({"ar": -0.25, "mae": -0.22, "supervised": -0.18})))
    assert len(table) == 3
    assert (table["p_holm"] >= table["p"]).all()


def test_curves_cross_where_they_were_made_to() -> None:
    table = study({"ar": -0.25, "mae": -0.25}, own=1e-3)
    tilt = (table["x"] / 2e7) ** -0.08
    table["y"] *= np.where(table["strategy"] == "ar", tilt, 1.0)
    found = fits(table)
    crossing = find_crossing(found["ar"], found["mae"])
    assert crossing.at == pytest.approx(2e7, rel=0.1)
    assert crossing.interval_95 is not None
    assert crossing.interval_95[0] < 2e7 < crossing.interval_95[1]


def test_curves_that_never_meet_have_no_crossing_and_close_ones_an_open_one() -> None:
    apart = study({"ar": -0.25, "mae": -0.25}, own=1e-3)
    apart.loc[apart["strategy"] == "ar", "y"] *= 2
    found = fits(apart)
    assert find_crossing(found["ar"], found["mae"]).at is None
    crossings = []
    for seed in range(6):
        near = fits(study({"ar": -0.25, "mae": -0.25}, own=0.02, seed=seed))
        crossings.append(find_crossing(near["ar"], near["mae"]))
    met = [crossing.interval_95 for crossing in crossings if crossing.interval_95 is not None]
    assert met
    assert all(low == 0 or high == math.inf for low, high in met)
    with pytest.raises(UserError, match="same y over the same single x"):
        find_crossing(found["ar"], fit_law(apart.assign(z=apart["y"]), "power", "x", "z"))


def test_the_form_that_made_the_data_extrapolates_best_and_the_baseline_is_shown() -> None:
    x = np.geomspace(1e6, 1e9, 12)
    table = pd.DataFrame({"x": x, "y": 0.3 + 20 * x**-0.25})
    ranking = choose_form(table, ("power", "power-floor", "m3"), "x", "y", hold_out="x > 2e8")
    assert set(ranking["law"]) == {"power", "power-floor", "m3", "nearest point"}
    errors = ranking.set_index("law")["log_rmse"]
    assert errors["power-floor"] < 1e-5
    assert errors["power-floor"] < errors["power"] < errors["nearest point"]
    few = choose_form(table.head(6), ("power", "broken-power"), "x", "y", hold_out="x > 2e7")
    assert "distinct x" in few.set_index("law").loc["broken-power", "refused"]


def test_rolling_out_predicts_each_larger_size_from_the_smaller() -> None:
    table = study({"ar": -0.25}, own=1e-3)
    rolled = roll_out(table, "power", "x", "y")
    assert list(rolled["fitted_to"]) == pytest.approx([1e7, 1e7, 3e7])
    assert list(rolled["x"]) == pytest.approx([3e7, 1e8, 1e8])
    assert np.abs(rolled["log_error"]).max() < 0.02
    assert ((rolled["low"] < rolled["y"]) & (rolled["y"] < rolled["high"])).all()


def test_strategies_are_paired_by_seed_over_the_runs_that_have_a_partner() -> None:
    table = study({"ar": -0.25, "mae": -0.22}, shared=0.03)
    lone = (table["strategy"] == "mae") & (table["seed"] == 2) & (table["x"] > 5e6)
    row = compare_strategies(table[~lone], "power", "x", "y").iloc[0]
    partners = table[~((table["seed"] == 2) & (table["x"] > 5e6))]
    slope, half, p = paired_test(partners)
    assert row["paired"]
    assert row["pairs"] == 15 - 3
    assert row["difference"] == pytest.approx(slope, abs=1e-8)
    assert (row["low"], row["high"]) == pytest.approx((slope - half, slope + half), abs=1e-5)
    assert row["p"] == pytest.approx(p, rel=1e-3)


def test_strategies_without_partners_at_every_size_are_compared_as_independent() -> None:
    table = study({"ar": -0.25, "mae": -0.22}, own=0.003)
    lone = table[~((table["strategy"] == "mae") & (table["x"] == 1e7))]
    twice = pd.concat([table, table.head(1)])
    for case in (lone, twice, table.drop(columns="seed")):
        row = compare_strategies(case, "power", "x", "y").iloc[0]
        assert not row["paired"]
        assert row["pairs"] == 0
        assert row["low"] < -0.03 < row["high"]
        alone = compare_exponents(fits(case)).iloc[0]
        assert row["difference"] == pytest.approx(alone["difference"])


def test_strategies_that_cannot_be_fitted_are_left_out_and_the_rest_corrected_for_their_own_number() -> None:
    table = study({"ar": -0.25, "mae": -0.22, "supervised": -0.18, "scratch": -0.1})
    table = table[(table["strategy"] != "scratch") | (table["x"] < 5e6)]
    found = compare_strategies(table, "power", "x", "y")
    assert set(found["first"]) | set(found["second"]) == {"ar", "mae", "supervised"}
    assert len(found) == 3
    assert found["p_holm"].min() == pytest.approx(min(1.0, 3 * found["p"].min()))


def test_runs_without_seeds_or_of_sizes_in_another_order_are_no_partners() -> None:
    table = study({"ar": -0.3, "mae": -0.25}, shared=0.03)
    table = table.assign(size=table["x"].astype(str))
    other = table["strategy"] == "mae"
    turned = table["x"].where(~other | ~table["x"].isin(SIZES[:2]), SIZES[:2].sum() - table["x"])
    longer = table["x"].where(~other | (table["seed"] != 2), 2 * table["x"])
    unseeded = table[table["seed"] == 0].assign(seed=np.nan)
    for runs in (unseeded, table.assign(x=turned), table.assign(x=longer)):
        row = compare_strategies(runs, "power", "x", "y").iloc[0]
        assert not row["paired"]
        assert row["difference"] == pytest.approx(compare_exponents(fits(runs)).iloc[0]["difference"])


@pytest.mark.parametrize("seeds", [{"seed": [0] * 5}, {}])
def test_points_without_any_scatter_can_be_compared(seeds: dict[str, list[int]]) -> None:
    """As where every run guesses, with the same accuracy at every size."""
    parts = [
        pd.DataFrame({"strategy": name, "x": SIZES, "y": 0.9 * (SIZES / SIZES[0]) ** c, **seeds})
        for name, c in (("ar", 0.0), ("mae", 0.0), ("scratch", -0.25))
    ]
    table = compare_strategies(pd.concat(parts), "power", "x", "y").set_index(["first", "second"])
    assert table["paired"].all() == bool(seeds)
    assert table["difference"].to_numpy() == pytest.approx([0, 0.25, 0.25])
    assert table[["low", "high"]].to_numpy() == pytest.approx(table[["difference"] * 2].to_numpy(), abs=1e-9)
    assert table["p"].to_numpy() == pytest.approx([1, 0, 0], abs=1e-9)


def test_partners_are_of_one_size_even_where_their_parameters_differ() -> None:
    table = study({"ar": -0.25, "mae": -0.22}, shared=0.03).assign(size=lambda rows: rows["x"].astype(str))
    heavier = table.assign(x=np.where(table["strategy"] == "mae", 1.1, 1.0) * table["x"])
    row = compare_strategies(heavier, "power", "x", "y").iloc[0]
    assert row["paired"]
    assert row["difference"] == pytest.approx(paired_test(table)[0], abs=1e-8)
