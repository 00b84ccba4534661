"""Approaches 1 and 2 on curves made from a known L(N, D): the best size grows as C^a with a = beta / (alpha + beta)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.figures_planes import contours, isoflop, plane_fits
from analysis.fit import fit_law
from analysis.foreign import collect_table
from analysis.isoflop import budgets, envelope
from analysis.tables import Tables
from scaling.errors import UserError
from scaling.study.plan import plan_study
from scaling.study.table import PACKAGED, load_study

E, A, B, ALPHA, BETA = 0.05, 40.0, 33.0, 0.45, 0.40
EXPONENT = BETA / (ALPHA + BETA)


def error(n: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
    """L(N, D) at C = 6 N D."""
    return np.asarray(E + A / n**ALPHA + B / (c / (6 * n)) ** BETA)


def best(c: np.ndarray | float) -> np.ndarray:
    """Where d L / d N = 0 at fixed C (Hoffmann et al. 2022, equation 4)."""
    return (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (np.asarray(c) / 6) ** EXPONENT


def curves(sizes: np.ndarray, noise: float = 0.0) -> pd.DataFrame:
    """Training curves of constant learning rate: at every step the loss of a run of that length."""
    generator, parts = np.random.default_rng(0), []
    for n in sizes:
        c = 6 * n * np.geomspace(1e4, 1e10, 300)
        y = error(n, c) * np.exp(generator.normal(0, noise))
        parts.append(pd.DataFrame({"run": f"run-{n:g}", "n": n, "c": c, "loss": y}))
    return pd.concat(parts, ignore_index=True)


def test_the_envelope_gives_the_exponent_of_the_best_size_and_its_place() -> None:
    """Each size's stretch lies between computes that are the same multiple of its own best compute."""
    sizes = np.geomspace(1e5, 1e8, 9)
    fit = fit_law(curves(sizes), "envelope", ("n", "c"), "loss", delta=float("inf"))
    assert len(fit.points) == 7
    assert fit.parameters["a"].value == pytest.approx(EXPONENT, abs=0.005)
    compute = 6e14
    assert fit.predict({"c": [compute]})["y"].item() == pytest.approx(float(best(compute)), rel=0.1)


def test_noise_of_whole_curves_stays_inside_the_interval() -> None:
    fit = fit_law(curves(np.geomspace(1e5, 1e8, 9), noise=0.002), "envelope", ("n", "c"), "loss", delta=float("inf"))
    low, high = fit.parameters["a"].interval_95 or (0.0, 0.0)
    assert low < EXPONENT < high


def test_the_envelope_is_the_lowest_curve_at_every_compute() -> None:
    sizes = np.geomspace(1e5, 1e8, 5)
    found = envelope(curves(sizes), "n", "c", "loss")
    lowest = np.min([error(n, found["c"].to_numpy()) for n in sizes], axis=0)
    assert found["loss"].to_numpy() == pytest.approx(lowest, rel=1e-3)
    assert found["n"].is_monotonic_increasing


def test_envelopes_that_say_nothing_are_refused_or_warned_of() -> None:
    with pytest.raises(UserError, match="at least five sizes"):
        fit_law(curves(np.geomspace(1e5, 1e7, 4)), "envelope", ("n", "c"), "loss")
    with pytest.raises(UserError, match="no column run"):
        fit_law(curves(np.geomspace(1e5, 1e8, 6)).drop(columns="run"), "envelope", ("n", "c"), "loss")
    crossed = curves(np.geomspace(1e5, 1e8, 9))
    sizes = np.sort(crossed["n"].unique())
    swapped = crossed["n"].replace({sizes[3]: sizes[5], sizes[5]: sizes[3]})
    fit = fit_law(crossed.assign(n=swapped), "envelope", ("n", "c"), "loss")
    assert any("not the best at larger compute throughout" in warning for warning in fit.warnings)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """Runs of two strategies at four budgets, sizes about the best of each, one strategy better throughout."""
    rows = []
    for strategy, factor in (("ar", 1.0), ("mae", 1.2)):
        for c in np.geomspace(1e13, 1e16, 4):
            for share in np.geomspace(0.2, 5, 7):
                n = float(best(c)) * share
                rows.append((strategy, n, c, c / (6 * n), float(error(n, c)) * factor))
    columns = ["strategy", "parameters", "total_train_flops", "total_images_seen", "top1_error"]
    path = tmp_path_factory.mktemp("table") / "points.csv"
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return collect_table(path)


def test_isoflop_panels_mark_the_best_size_of_every_budget(study: Tables) -> None:
    picture = isoflop(study)
    assert picture is not None
    assert set(picture.data["strategy"]) == {"ar", "mae"}
    assert len(picture.data) == 56
    for (_, budget), runs in picture.data.groupby(["strategy", "budget"]):
        assert runs["best_parameters"].nunique() == 1, budget
        true = float(best(runs["total_train_flops"].mean()))
        assert runs["best_parameters"].iloc[0] == pytest.approx(true, rel=0.12)
    fit = fit_law(study.runs[study.runs["strategy"] == "ar"], "isoflop", ("parameters", "total_train_flops"),
                  "top1_error", delta=float("inf"))  # fmt: skip
    assert fit.parameters["a"].value == pytest.approx(EXPONENT, abs=0.01)


def test_runs_of_one_budget_are_told_by_their_matrix_products(tmp_path: Path) -> None:
    """total_train_flops of the packaged study, whose budgets count scans too, a ninth of a tiny Mamba's."""
    rows, totals = plan_study(load_study(PACKAGED / "isoflop.yaml"), tmp_path).rows, {}
    for row in rows:
        totals[row.config.run] = (row.cost.train_flops or 0) + totals.get(row.config.parent, 0)
    for strategy in ("ar", "mae", "supervised"):
        flops = [
            totals[row.config.run] for row in rows if (row.config.strategy, row.config.stage) == (strategy, "finetune")
        ]
        assert np.bincount(budgets(np.array(flops))).tolist() == [4, 4, 4, 4], strategy


def test_contours_are_those_of_the_law(study: Tables) -> None:
    fits, refused = plane_fits(study)
    assert not refused
    picture = contours(fits)
    assert picture is not None
    assert picture.data["predicted"].to_numpy() == pytest.approx(picture.data["top1_error"].to_numpy(), rel=1e-3)
    assert fits["ar"].parameters["a"].value == pytest.approx(EXPONENT, abs=1e-3)
