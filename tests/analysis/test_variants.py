"""Ablations in the report: one factor at a time, the usual runs alone stand for their strategy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from scipy import stats

from analysis.collect import collect_runs
from analysis.figures import accuracies
from analysis.figures_planes import finetuned
from analysis.sections import accuracy
from analysis.variants import section, varied
from scaling.rundir import CONFIG, SUMMARY
from tests.analysis.folders import write_run

SEEDS = (0, 1, 2)
ABLATED = {
    "": ({}, {}, [0.600, 0.612, 0.607]),
    "cluster_1": ({"cluster_side": 1}, {}, [0.560, 0.580, 0.571]),
    "cluster_2": ({"cluster_side": 2}, {}, [0.590, 0.600, 0.601]),
    "scans_1": ({}, {"scan_directions": 1}, [0.580, 0.588, 0.592]),
}
"""By name: changes of ar, changes of train, accuracies of the seeds."""


def write_arm(study: Path, strategy: str, name: str) -> None:
    """The runs of one variant: a pretraining a seed, a finetuning under it, as the trainer writes them."""
    of_ar, of_train, top1 = ABLATED[name]
    for seed in SEEDS:
        length = 1 + list(ABLATED).index(name)  # for the folder's name alone
        parent = write_run(study, strategy, "pico", "pretrain", seed, length=length) if strategy == "ar" else None
        run = write_run(study, strategy, "pico", "finetune", seed, parent.name if parent else None, length=length)
        for folder in filter(None, (parent, run)):
            config = yaml.safe_load((folder / CONFIG).read_text())
            config["ar"] = {"cluster_side": 4, "order": "row"} | of_ar
            config["train"] |= {"images": 1000, "scan_directions": 4} | of_train
            (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
        summary = json.loads((run / SUMMARY).read_text())
        (run / SUMMARY).write_text(json.dumps(summary | {"top1": top1[seed], "total_images_seen": 2000}))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Four variants of ar and two of the control, which has no part in the objective of ar."""
    folder = tmp_path / "ablations"
    folder.mkdir()
    for name in ABLATED:
        write_arm(folder, "ar", name)
    for name in ("", "scans_1"):
        write_arm(folder, "scratch", name)
    return folder


def test_what_most_have_is_usual(study: Path) -> None:
    """Two values of one setting are no tie where the rest of the study decides: scratch has four scans as usual."""
    table = varied(collect_runs(study).completed)
    assert len(table) == 18
    usual = table[table["usual"]]
    assert sorted(zip(usual["strategy"], usual["seed"], strict=True)) == [
        (name, seed) for name in ("ar", "scratch") for seed in SEEDS
    ]
    assert set(usual["variant"]) == {""}
    of_ar = table[table["strategy"] == "ar"]
    scans = "finetune.scan_directions 1, pretrain.scan_directions 1"
    assert set(of_ar["variant"]) == {"", "ar.cluster_side 1", "ar.cluster_side 2", scans}
    assert set(table.loc[table["strategy"] == "scratch", "variant"]) == {"", "finetune.scan_directions 1"}


def test_the_others_enter_no_curve(study: Path) -> None:
    tables = collect_runs(study)
    for found in (accuracies(tables), finetuned(tables)):
        assert sorted(found["top1"]) == sorted(ABLATED[""][2] * 2)


def test_the_table_against_the_usual(study: Path) -> None:
    page = section(collect_runs(study))
    rows = [re.sub(r"<[^>]*>", "|", row) for row in page.split("<tr>")]
    (row,) = [row for row in rows if "ar.cluster_side 1" in row]
    interval = stats.ttest_rel(ABLATED["cluster_1"][2], ABLATED[""][2]).confidence_interval(0.95)
    assert f"-3.60 [{100 * interval.low:.2f}, {100 * interval.high:.2f}]" in row
    assert sum("as usual" in row for row in rows) == 2


def test_two_equal_halves_stay(tmp_path: Path) -> None:
    """An axis of two values: nothing says which is usual, so both stand in the curves and are named in full."""
    for name in ("", "scans_1"):
        write_arm(tmp_path, "scratch", name)
    tables = collect_runs(tmp_path)
    table = varied(tables.completed)
    assert not table["usual"].any()
    assert set(table["variant"]) == {"finetune.scan_directions 4", "finetune.scan_directions 1"}
    assert len(accuracies(tables)) == 6
    assert "a mean over runs that may differ in more than their seed" in accuracy(tables)


def test_seeds_and_lengths_are_no_variants(tmp_path: Path) -> None:
    for seed in SEEDS:
        for length in (1, 2):
            write_run(tmp_path, "scratch", "pico", "finetune", seed, length=length)
    tables = collect_runs(tmp_path)
    assert varied(tables.completed).empty
    assert section(tables) == ""
    assert len(accuracies(tables)) == 6
    assert "a mean over seeds, of each" in accuracy(tables)
