"""Runs at two resolutions, or on two data sets: never in one fit, and side by side in the report."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.arms import labels
from analysis.collect import collect_runs, update_tables
from analysis.figures import accuracies, at_full_length
from analysis.figures_compare import loss_to_accuracy, ranks, rollouts
from analysis.figures_laws import study_fits
from analysis.fit import fit_groups, fit_law
from analysis.foreign import collect_table
from analysis.report import write_report
from analysis.tables import Tables
from scaling.errors import UserError
from scaling.rundir import CONFIG
from tests.analysis.folders import write_run, write_study

SIZES = ("pico", "nano", "micro", "tiny", "small")
DATA = ("fashion-mnist", "cifar10")


def change(study: Path, section: str, **fields: object) -> None:
    """Changes one section of every config of a study."""
    for path in study.glob(f"*/{CONFIG}"):
        config = yaml.safe_load(path.read_text())
        config[section] |= fields
        path.write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.fixture(scope="module")
def resolutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each supervised run at 32 pixels has a further stage at 48, as `finetune_384` makes it."""
    study = write_study(tmp_path_factory.mktemp("resolutions"), strategies=("supervised",), sizes=SIZES)
    for parent in list(study.glob("supervised*")):
        child = write_run(study, "supervised", parent.name.split("-")[2], parent=parent.name, length=2)
        path = child / CONFIG
        path.write_text(path.read_text().replace("image_size: 32", "image_size: 48"))
    return study


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of two studies that differ in their data set."""
    root = tmp_path_factory.mktemp("data")
    for source in DATA:
        study = write_study(root, source, ("ar", "scratch"), SIZES)
        change(study, "data", source=source, shards=f"shards/{source}")
    return root


@pytest.mark.parametrize(
    ("made", "column", "values"), [("resolutions", "resolution", "32.0, 48.0"), ("data_sets", "data", "cifar10, fash")]
)
def test_they_are_refused_in_one_fit_and_fitted_in_groups(
    made: str, column: str, values: str, request: pytest.FixtureRequest
) -> None:
    runs = collect_runs(request.getfixturevalue(made)).completed
    runs = runs[runs["strategy"].isin(["supervised", "scratch"])]
    with pytest.raises(UserError, match=f"mixed: {values}.*rows of one {column}"):
        fit_law(runs, "power", "parameters", "top1_error")
    assert [fit.n for fit in fit_groups(runs, column, "power", "parameters", "top1_error").values()] == [5, 5]


def named(tables: Tables) -> list[set[str]]:
    """The arms in everything that the report fits or ranks."""
    fits, refused = study_fits(tables, "total_train_flops")
    assert not refused
    assert {fit.n for fit in fits.values()} == {5}
    return [set(fits), set(rollouts(tables)["strategy"]), set(ranks(at_full_length(accuracies(tables)))["strategy"])]


def cells(text: str) -> list[list[str]]:
    """The rows of the table of accuracies."""
    section = text.partition('<section id="accuracy">')[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_the_report_fits_each_resolution_alone(resolutions: Path, tmp_path: Path) -> None:
    arms = {"supervised, 32 px", "supervised, 48 px"}
    tables = collect_runs(resolutions)
    assert named(tables) == [arms] * 3
    text = write_report(resolutions, tmp_path).read_text()
    rows = cells(text)
    assert rows[0][:4] == ["Evaluated by", "Strategy", "Encoder", "Pixels"]
    assert [row[3] for row in rows[1:]] == ["32", "48"]
    drawn = pd.read_csv(tmp_path / "figures" / "law_flops.csv")
    assert set(drawn["strategy"]) == arms


def test_the_report_fits_each_data_set_alone(data_sets: Path, tmp_path: Path) -> None:
    arms = {f"{strategy}, {data}" for strategy in ("ar", "scratch") for data in DATA}
    tables = update_tables(data_sets, tmp_path / "tables")
    assert named(tables) == [arms] * 3
    picture = loss_to_accuracy(tables)
    assert picture is not None
    assert set(picture.data["label"]) == {f"ar, {data}" for data in DATA}
    rows = cells(write_report(tmp_path / "tables").read_text())
    assert rows[0][3] == "Data set"
    assert sorted(row[3] for row in rows[1:]) == sorted([*DATA] * 2)


def test_a_label_names_only_what_differs() -> None:
    rows = [("ar", "mamba", 32.0), ("ar", "vit", 32.0), ("mae", "vit", np.nan)]
    table = pd.DataFrame(rows, columns=["strategy", "encoder", "resolution"]).assign(data="cifar10")
    assert list(labels(table)) == ["ar, mamba", "ar, vit", "mae, vit"]
    assert list(labels(table.assign(encoder="vit"))) == ["ar", "ar", "mae"]
    table.loc[0, "resolution"] = 48
    assert list(labels(table)) == ["ar, mamba, 48 px", "ar, vit, 32 px", "mae, vit, unknown px"]


def test_tables_of_other_programs(tmp_path: Path) -> None:
    """A column `dataset` tells them apart as `data` does; numbers under `data` are amounts and mean no such thing."""
    sizes = np.geomspace(1e6, 1e9, 6)
    table = pd.DataFrame({"parameters": sizes, "data": 20 * sizes, "top1_error": 20 * sizes**-0.25})
    assert fit_law(table, "power", "parameters", "top1_error").n == 6
    both = pd.concat([table.assign(dataset=name, top1_error=table["top1_error"] / k) for k, name in enumerate("ab", 1)])
    with pytest.raises(UserError, match="rows of one dataset"):
        fit_law(both, "power", "parameters", "top1_error")
    both.drop(columns="data").to_csv(tmp_path / "points.csv", index=False)
    tables = collect_table(tmp_path / "points.csv")
    assert set(study_fits(tables, "parameters")[0]) == set(rollouts(tables)["strategy"]) == {"all, a", "all, b"}
