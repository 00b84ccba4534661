"""The planner against a study whose laws are known, so that the best use of a budget is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from analysis.collect import collect_runs
from analysis.plan_next import fit_cost, plan_next
from scaling.cli import analysis as cli
from scaling.errors import UserError
from tests.analysis.folders import write_study

LAWS = {"ar": (0.05, 40.0, 33.0, 0.45, 0.40), "mae": (0.08, 40.0, 33.0, 0.45, 0.40)}
SECONDS = 2e-9


def error(law: tuple[float, ...], n: float | np.ndarray, d: float | np.ndarray) -> float | np.ndarray:
    floor, a, b, alpha, beta = law
    return floor + a / n**alpha + b / d**beta


def study(noise: float, lengths: tuple[float, ...] = (1e6, 4e6, 1.6e7, 6.4e7)) -> pd.DataFrame:
    generator, rows = np.random.default_rng(0), []
    for strategy, law in LAWS.items():
        for n in (1e6, 3e6, 1e7, 3e7, 1e8):
            for d in lengths:
                y = error(law, n, d) * np.exp(generator.normal(0, noise))
                rows.append((strategy, "finetune", n, d, y, 1 - y, SECONDS * n * d))
    columns = ["strategy", "protocol", "parameters", "total_images_seen", "top1_error", "top1", "total_gpu_seconds"]
    return pd.DataFrame(rows, columns=columns)


def test_the_best_use_of_a_budget_is_the_true_one() -> None:
    budget = 200.0
    result = plan_next(study(noise=1e-4), budget)
    assert [plan.strategy for plan in result.plans] == ["ar", "mae"]
    best = minimize_scalar(
        lambda log_n: float(error(LAWS["ar"], np.exp(log_n), budget * 3600 / (SECONDS * np.exp(log_n)))),
        bounds=(np.log(1e5), np.log(1e9)), method="bounded",
    )  # fmt: skip
    plan = result.plans[0]
    assert plan.parameters == pytest.approx(np.exp(best.x), rel=0.1)
    assert plan.images * plan.parameters * SECONDS == pytest.approx(budget * 3600, rel=1e-6)
    assert plan.top1 == pytest.approx(1 - best.fun, abs=1e-3)
    assert plan.top1_95[0] <= 1 - best.fun <= plan.top1_95[1]
    assert plan.parameters_low / 1.1 <= np.exp(best.x) <= plan.parameters_high * 1.1  # a step of the grid
    assert not plan.extrapolates


def test_encoders_are_planned_apart_as_the_report_fits_them() -> None:
    """Two error floors and two costs: each encoder alone is planned just so, and so is neither by one law of both."""
    parts = []
    for encoder, more, price in (("mamba", 0.0, 1.0), ("vit", 0.15, 3.0)):
        part = study(noise=1e-4).query("strategy == 'ar'").assign(encoder=encoder)
        part["top1_error"] += more
        part["total_gpu_seconds"] *= price
        parts.append(part)
    plans = plan_next(pd.concat(parts), 200.0).plans
    assert [plan.strategy for plan in plans] == ["ar, mamba", "ar, vit"]
    for plan, part in zip(plans, parts, strict=True):
        assert dataclasses.replace(plan, strategy="ar") == plan_next(part, 200.0).plans[0]
    assert plans[0].top1 > plans[1].top1 + 0.15


def test_variants_are_left_out_as_in_the_report(tmp_path: Path) -> None:
    """An ablation of two settings, one at a time, with twice the error changes no plan."""
    sizes = ("pico", "nano", "micro", "tiny")
    runs = collect_runs(write_study(tmp_path, strategies=("supervised",), sizes=sizes, lengths=(1, 4, 16))).runs
    usual = runs.assign(**{"config.model.depth": 12.0, "config.model.patch_size": 4.0})
    tables = [usual]
    for name, value in (("depth", 6.0), ("patch_size", 8.0)):
        changed = {f"config.model.{name}": value, "run": usual["run"] + name, "top1_error": 2 * usual["top1_error"]}
        tables.append(usual.assign(**changed))
    assert plan_next(pd.concat(tables, ignore_index=True), 0.1) == plan_next(usual, 0.1)


def test_cost_is_read_from_the_runs() -> None:
    constant, slope = fit_cost(study(noise=0))
    assert slope == pytest.approx(1.0)
    assert np.exp(constant) == pytest.approx(SECONDS / 3600)


def test_proposed_runs_narrow_the_interval_and_stay_within_the_budget() -> None:
    table = study(noise=0.02)
    result = plan_next(table, 50.0)
    assert [run.narrows_by for run in result.proposals] == sorted(
        (run.narrows_by for run in result.proposals), reverse=True
    )
    assert result.proposals[0].narrows_by > 0
    assert all(run.gpu_hours <= 50 for run in result.proposals)
    widths = []
    for place in (result.proposals[0], None):
        more = table if place is None else pd.concat([table, table.iloc[[0] * 3].assign(
            parameters=place.parameters, total_images_seen=place.images,
            total_gpu_seconds=SECONDS * place.parameters * place.images,
            top1_error=error(LAWS["ar"], place.parameters, place.images),
        )])  # fmt: skip
        low, high = plan_next(more, 50.0).plans[0].top1_95
        widths.append(high - low)
    assert widths[0] < widths[1]
    json.dumps(result.as_json(), allow_nan=False)
    assert "narrow" in str(result)


def test_the_command_prints_the_plan_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(noise=0.01).to_csv(tmp_path / "runs.csv", index=False)
    cli.plan_next(tmp_path / "runs.csv", 100.0, tmp_path / "plan.json")
    assert "Budget 100 GPU-hours" in capsys.readouterr().out
    written = json.loads((tmp_path / "plan.json").read_text())
    assert {plan["strategy"] for plan in written["plans"]} == {"ar", "mae"}
    assert len(written["proposals"]) == 3


def test_a_reason_is_said_once_for_all_the_arms_that_it_is_of() -> None:
    reason = "several total_images_seen for each parameters"
    short = study(noise=0.01, lengths=(1e6,))
    with pytest.raises(UserError) as refused:
        plan_next(short, 10.0)
    assert str(refused.value).count(reason) == 1
    assert "ar; mae: total_images_seen" in str(refused.value)
    more = pd.concat([short, study(noise=0.01).query("strategy == 'ar'").assign(strategy="long")])
    told = str(plan_next(more, 10.0)).splitlines()
    assert [line.split(": ")[0].strip() for line in told if reason in line] == ["no plan for ar; mae"]


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(UserError, match=r"budget: 1e-06 .*images the law says an error of 1698%"):
        plan_next(study(noise=1e-4), 1e-6)
    with pytest.raises(UserError, match="several total_images_seen for each parameters"):
        plan_next(study(noise=0.01, lengths=(1e6,)), 10.0)
    with pytest.raises(UserError, match="GPU-hours above 0"):
        plan_next(study(noise=0.01), 0.0)
    with pytest.raises(UserError, match="the collected table of runs"):
        plan_next(study(noise=0.01).drop(columns="protocol"), 1.0)
