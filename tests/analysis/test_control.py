"""Differences from the control against scipy's paired t test, and where they stand in the report."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.collect import collect_runs
from analysis.control import against_control, section
from analysis.seeds import spread
from scaling.rundir import EVALUATIONS
from tests.analysis.folders import append, evaluation, write_run, write_study

TOP1 = {"ar": [0.61, 0.66, 0.63, 0.70], "mae": [0.58, 0.62, 0.64], "scratch": [0.55, 0.61, 0.60, 0.66]}


def table_of(top1: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(name, seed, value) for name, values in top1.items() for seed, value in enumerate(values)]
    table = pd.DataFrame(rows, columns=["strategy", "seed", "top1"])
    return table.assign(protocol="finetune", encoder="mamba", resolution=32.0, data="cifar10", size="tiny")


def test_intervals_are_those_of_the_paired_t_test() -> None:
    found = against_control(table_of(TOP1)).set_index("strategy")
    for name, values in TOP1.items():
        one = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert found.loc[name, ["mean", "low", "high"]].tolist() == pytest.approx([np.mean(values), one.low, one.high])
        if name == "scratch":
            continue
        control = TOP1["scratch"][: len(values)]  # mae has one seed less
        paired = stats.ttest_rel(values, control).confidence_interval(0.95)
        ends = found.loc[name, ["difference", "difference_low", "difference_high"]].tolist()
        assert ends == pytest.approx([np.mean(np.subtract(values, control)), paired.low, paired.high])
        assert found.loc[name, "seeds"] == len(values)
    assert np.isnan(found.loc["scratch", "difference"])


@pytest.mark.parametrize(("name", "other"), [("resolution", 64.0), ("data", "fashion-mnist")])
def test_the_control_is_one_at_the_same_resolution_on_the_same_data(name: str, other: object) -> None:
    """A control that is much worse elsewhere changes nothing here, and what has none there has no difference."""
    here, there = table_of(TOP1), table_of({"scratch": [0.1, 0.2, 0.1, 0.2]}).assign(**{name: other})
    alone, both = (against_control(table) for table in (here, pd.concat([here, there])))
    pd.testing.assert_frame_equal(both[both[name] != other].reset_index(drop=True), alone)
    assert against_control(pd.concat([here[here["strategy"] == "ar"], there]))["difference"].isna().all()


def test_seeds_in_another_order_pair_alike() -> None:
    table = table_of(TOP1)
    pd.testing.assert_frame_equal(against_control(table), against_control(table.sample(frac=1, random_state=3)))


def test_rows_go_from_small_sizes_to_large_and_strategies_as_in_the_glossary() -> None:
    table = pd.concat([table_of(TOP1).assign(size=size) for size in ("nano", "pico", "large", "base", "mine")])
    found = against_control(table)
    assert list(found["size"].unique()) == ["pico", "nano", "base", "large", "mine"]
    assert list(found["strategy"])[:3] == ["ar", "mae", "scratch"]


def test_one_seed_has_no_interval_and_no_control_no_table() -> None:
    mean, low, high = spread(pd.Series([0.5]))
    assert (mean, np.isnan(low), np.isnan(high)) == (0.5, True, True)
    assert against_control(table_of({"ar": [0.5, 0.6], "mae": [0.4, 0.5]})).empty


def test_the_report_has_finetunings_and_probes(tmp_path: Path) -> None:
    """Three seeds; k-NN of a probe stands beside its linear probe, on its own images; a pretraining's does not."""
    study = write_study(tmp_path, sizes=("pico",), seeds=(0, 1, 2))
    for seed in (0, 1, 2):
        for strategy, own in (("ar", 0.50), ("scratch", 0.40)):
            run = write_run(study, strategy, "pico", "probe", seed)
            append(run / EVALUATIONS, evaluation(own + seed / 100, protocol="linear_probe"))
            append(run / EVALUATIONS, evaluation(0.1, protocol="knn", dataset="imagenet-a"))
            append(run / EVALUATIONS, evaluation(own - seed / 100, protocol="knn"))
    page = section(collect_runs(study))
    rows = [re.sub(r"<[^>]*>", "|", row) for row in page.split("<tr>")]
    (knn,) = [row for row in rows if "knn" in row and "Autoregressive" in row]
    assert "10.00 [10.00, 10.00]" in knn
    assert sum("Scratch" in row for row in rows) == 3  # finetune, linear_probe, knn
    assert sum("linear_probe" in row for row in rows[1:]) == 2
