"""Throughput against numbers that are known because the logs were made so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.collect import collect_runs
from analysis.figures import cost
from analysis.sections_speed import target_cost
from analysis.tables import Tables
from analysis.throughput import cost_to_accuracy, efficiency, median_interval, pareto_front, run_rates, speeds, steady
from scaling.errors import UserError
from scaling.rundir import EVALUATIONS, SUMMARY
from tests.analysis.folders import BATCH, STEPS, append, evaluation, metric, write_run, write_study


@pytest.fixture
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    study = write_study(tmp_path_factory.mktemp("runs"), strategies=("ar", "scratch"), sizes=("pico", "nano"))
    for folder in study.glob("*finetune*"):
        append(folder / EVALUATIONS, evaluation(0.5, step=10), evaluation(0.7, step=20))
    return collect_runs(study)


def test_steady_state_drops_the_first_tenth_of_each_attempt() -> None:
    records = [metric("ar", "pico", "pretrain", 0, step, attempt=1) for step in range(5, 205, 5)]
    records += [metric("ar", "pico", "pretrain", 0, step, attempt=2) for step in range(205, 225, 5)]
    metrics = pd.DataFrame(records).assign(study="s", run="r")
    assert list(steady(metrics).groupby("attempt")["step"].min()) == [25, 210]
    rates = run_rates(metrics)
    assert rates["intervals"].item() == 36 + 3
    assert rates["step_seconds"].item() == pytest.approx(0.2)
    assert rates["images_per_second"].item() == pytest.approx(256 / 0.2)


def test_speeds_are_per_device_and_check_themselves(tables: Tables) -> None:
    table = speeds(tables)
    assert table["identity"].to_numpy() == pytest.approx(1.0)
    assert table["consistent"].all()
    assert table["data_share"].to_numpy() == pytest.approx(0.1)
    pico = table[table["size"] == "pico"]
    assert pico["images_per_second_per_device"].to_numpy() == pytest.approx(BATCH / 0.2)
    assert ((table["low"] <= table["images_per_second"]) & (table["images_per_second"] <= table["high"])).all()
    tables.metrics["images_per_second"] *= 1.2
    assert not speeds(tables)["consistent"].any()


def test_the_log_of_a_run_that_is_not_completed_is_checked_against_its_own_batch(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("scratch",), sizes=("pico",))
    write_run(study, "supervised", state="failed")
    assert speeds(collect_runs(study))["consistent"].tolist() == [True, True]


def test_the_interval_of_a_median_covers_it() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        low, high = median_interval(generator.normal(5, 1, 41))
        inside += low <= 5 <= high
    assert 0.92 * 400 <= inside <= 0.98 * 400
    assert median_interval(np.array([3.0])) == (3.0, 3.0)
    assert np.isnan(median_interval(np.array([]))).all()


@pytest.mark.parametrize("count", [5, 12, 41])
def test_the_interval_of_a_median_is_what_drawing_again_gives(count: int) -> None:
    generator = np.random.default_rng(count)
    values = np.sort(generator.normal(5, 1, count))
    drawn = np.sort(values[generator.integers(0, count, (40_000, count))], axis=1)
    low, high = median_interval(values)
    assert np.quantile(drawn[:, (count - 1) // 2], 0.025, method="inverted_cdf") == low
    assert np.quantile(drawn[:, count // 2], 0.975, method="inverted_cdf") == high


def test_weak_and_strong_efficiency() -> None:
    measured = ((1, 100, 100), (2, 96, 90), (4, 90, 70))
    rows = [(devices, batch, rate) for devices, weak, strong in measured
            for batch, rate in ((64 * devices, weak), (1000, strong))]  # fmt: skip
    table = pd.DataFrame(rows, columns=["devices", "global_batch", "images_per_second_per_device"])
    table = table.assign(strategy="ar", encoder="mamba", size="tiny", stage="pretrain")
    weak = efficiency(table, "weak")
    assert dict(zip(weak["devices"], weak["efficiency"], strict=True)) == pytest.approx({1: 1.0, 2: 0.96, 4: 0.9})
    strong = efficiency(table, "strong")
    assert dict(zip(strong["devices"], strong["efficiency"], strict=True)) == pytest.approx({1: 1.0, 2: 0.9, 4: 0.7})
    assert efficiency(table.head(1), "weak").empty
    with pytest.raises(UserError, match="weak, strong"):
        efficiency(table, "sideways")


def test_cost_to_an_accuracy_counts_ancestors_and_says_when_it_was_not_reached(tables: Tables) -> None:
    table = cost_to_accuracy(tables, 0.6, price=2.0).set_index(["strategy", "size"])
    assert table["reached"].all()
    assert table.loc[("scratch", "pico"), "gpu_hours"] == pytest.approx(60 * 20 / STEPS / 3600)
    assert table.loc[("ar", "pico"), "gpu_hours"] == pytest.approx((60 + 60 * 20 / STEPS) / 3600)
    assert table.loc[("ar", "pico"), "images"] == pytest.approx((STEPS + 20) * BATCH)
    assert (table["cost"] == 2 * table["gpu_hours"]).all()
    never = cost_to_accuracy(tables, 0.99)
    assert not never["reached"].any()
    assert never["gpu_hours"].isna().all()


def test_an_accuracy_on_other_images_or_of_other_weights_is_not_reached(tmp_path: Path) -> None:
    """The averaged weights, which top1 is of, get there at step 20; raw ones and another test set do before."""
    study = write_study(tmp_path, strategies=("scratch",), sizes=("pico",))
    (run,) = study.glob("scratch*")
    rows = [evaluation(0.95, step=5, dataset="imagenet-real", images=46837, weights=name) for name in ("raw", "ema")]
    rows += [evaluation(top1, step=step, weights="raw") for step, top1 in ((10, 0.65), (20, 0.72))]
    rows += [evaluation(top1, step=step, weights="ema") for step, top1 in ((10, 0.50), (20, 0.68))]
    append(run / EVALUATIONS, *rows)
    table = cost_to_accuracy(collect_runs(study), 0.6)
    assert table["images"].item() == pytest.approx(20 * BATCH)
    assert not cost_to_accuracy(collect_runs(study), 0.7)["reached"].any()


def test_a_run_whose_evaluations_are_not_there_reached_its_own_accuracy_at_its_end(tables: Tables) -> None:
    last = replace(tables, metrics=tables.metrics.iloc[:0], evaluations=tables.evaluations.iloc[:0])
    table = cost_to_accuracy(last, 0.7).set_index(["strategy", "size"])
    assert list(table.index[table["reached"]]) == [("ar", "nano"), ("ar", "pico")]
    assert table.loc[("ar", "pico"), "gpu_hours"] == pytest.approx(2 * 60 / 3600)
    assert table["gpu_hours"].count() == 2


def test_costs_of_other_protocols_and_resolutions_stand_apart(tables: Tables) -> None:
    assert "Evaluated by" not in target_cost(tables, 0.6, 0.0)
    nano, pico = (tables.runs["strategy"] == "ar") & (tables.runs["size"] == "nano"), tables.runs["size"] == "pico"
    runs = tables.runs.assign(
        size="pico",
        resolution=tables.runs["resolution"].mask(nano, 48),
        protocol=tables.runs["protocol"].mask(~nano & ~pico, "linear_probe"),
    )
    text = target_cost(replace(tables, runs=runs), 0.6, 0.0)
    assert text.count("1 of 1") == 4
    assert "Evaluated by" in text
    assert ">48<" in text


def test_runs_of_one_name_in_two_studies_are_two_runs_on_the_front(tmp_path: Path) -> None:
    for name in ("one", "two"):
        study = write_study(tmp_path, name, strategies=("scratch",), sizes=("pico",))
    (run,) = study.glob("scratch*")
    (run / SUMMARY).write_text(
        (run / SUMMARY).read_text().replace('"total_gpu_seconds": 60.0', '"total_gpu_seconds": 90')
    )
    picture = cost(collect_runs(tmp_path))
    assert picture is not None
    assert picture.data.set_index("study")["on_front"].to_dict() == {"one": True, "two": False}


def test_the_pareto_front_holds_what_nothing_beats() -> None:
    table = pd.DataFrame({"hours": [1, 2, 3, 3, 4, 5], "top1": [0.5, 0.4, 0.7, 0.6, 0.7, 0.9]})
    assert pareto_front(table, "hours", "top1").to_numpy().tolist() == [[1, 0.5], [3, 0.7], [5, 0.9]]


def test_a_probe_is_no_cheaper_finetuning(tmp_path: Path) -> None:
    """It costs less and reads more off its encoder than either finetuning here, and is on a front of its own."""
    study = write_study(tmp_path, strategies=("ar",), sizes=("pico",), seeds=(0, 1))
    probe = write_run(study, "ar", stage="probe", parent=next(study.glob("*-pretrain-s0-*")).name)
    summary = json.loads((probe / SUMMARY).read_text())
    summary |= {"top1": 0.99, "protocol": "linear_probe", "total_gpu_seconds": 61.0}
    (probe / SUMMARY).write_text(json.dumps(summary))
    picture = cost(collect_runs(study))
    assert picture is not None
    assert [axes.get_ylabel() for axes in picture.figure.axes] == [
        "Top-1 accuracy, after finetuning", "Top-1 accuracy, linear probe"
    ]  # fmt: skip
    assert picture.data.groupby("protocol")["on_front"].any().all()
