"""Tables of other programs: mapped columns, odd cells, broken files, and a report of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.collect import update_tables
from analysis.fit import fit_groups, fit_law
from analysis.foreign import collect_table, parse_mapping, read_table
from analysis.report import write_report
from analysis.tables import Tables, read_tables
from scaling.cli import analysis as cli
from scaling.errors import UserError

POINTS = "Model Size, Training FLOP,acc,who\n1e6,6e13,50,a\n1e7,6e15,60,a\n1e8,6e17,68,b\n1e9,6e19,74,b\n"
MAPPING = ["N=Model Size", "D=`Training FLOP` / (6 * N)", "top1=acc / 100", "origin='table 3'"]


@pytest.fixture
def points(tmp_path: Path) -> Path:
    path = tmp_path / "points.csv"
    path.write_text(POINTS)
    return path


def test_columns_are_named_and_computed_by_the_mapping(points: Path) -> None:
    table = read_table(points, parse_mapping(MAPPING))
    assert list(table["N"]) == list(table["Model Size"])
    assert table["D"].to_numpy() == pytest.approx([1e7, 1e8, 1e9, 1e10])
    assert table["top1"].to_numpy() == pytest.approx([0.5, 0.6, 0.68, 0.74])
    assert set(table["origin"]) == {"table 3"}


@pytest.mark.parametrize(
    ("mapping", "said"),
    [("N", "NAME=COLUMN"), ("=x", "NAME=COLUMN"), ("N=Size", "one of the columns"), ("N=acc = 3", "pandas expression"),
     ("N=acc +", "pandas expression"), ("N=acc.mean(", "pandas expression")],
)  # fmt: skip
def test_a_mapping_that_means_nothing_is_refused(points: Path, mapping: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_table(points, parse_mapping([mapping]))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("content", [b"", b"a,b\n", b'a,b\n1,2\n3,4,5\n"', b"\xff\xfe\x00a", b"PAR1 torn"])
def test_files_that_are_empty_broken_or_something_else_are_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"points.{kind}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"points\.(csv|parquet).* is not valid"):
        read_table(path)
    with pytest.raises(UserError, match=r"ends in \.csv or \.parquet"):
        read_table(tmp_path / "points.txt")


def test_cells_without_a_number_are_left_out_and_columns_without_any_refused(points: Path) -> None:
    points.write_text(POINTS + "1e10,6e21,n/a,b\n1e11,6e23,inf,b\n,6e23,80,b\n1e12,6e25,n.a.,b\n")
    fit = fit_law(read_table(points), "power", "Model Size", "acc")
    assert fit.n == 4
    assert fit.excluded == 4
    assert any("4 rows without a number in Model Size, acc" in warning for warning in fit.warnings)
    with pytest.raises(UserError, match="it holds 'a'"):
        fit_law(read_table(points), "power", "Model Size", "who")
    with pytest.raises(UserError, match=r"no row to fit.*4 rows without a number"):
        fit_law(read_table(points), "power", "Model Size", "acc", exclude="acc < 79")


def test_accuracies_in_per_cent_are_refused_and_the_way_out_is_named(points: Path) -> None:
    with pytest.raises(UserError, match="--map 'top1=top1 / 100'"):
        fit_law(read_table(points, {"top1": "acc"}), "power", "Model Size", "top1")
    with pytest.raises(UserError, match="--map 'top1=top1 / 100'"):
        collect_table(points, {"top1": "acc"})
    by_part, by_cent = (
        fit_law(read_table(points, {"y": text}), "power-floor", "Model Size", "y", delta=float("inf"))
        for text in ("1 - acc / 100", "100 - acc")
    )
    assert by_cent.parameters["floor"].value == pytest.approx(100 * by_part.parameters["floor"].value, rel=1e-4)
    assert by_cent.parameters["c"].value == pytest.approx(by_part.parameters["c"].value, rel=1e-4)


def test_a_name_that_is_mapped_twice_is_refused_with_what_it_is_mapped_to() -> None:
    """What is to be changed where the refusal of per cents says to divide a column that is mapped itself."""
    with pytest.raises(UserError, match=r"top1=top1 / 100.*top1 is acc by another.*one --map a name"):
        parse_mapping(["top1=acc", "N=size", "top1=top1 / 100"])


def test_a_group_that_cannot_be_fitted_is_named_and_rows_of_no_group_are_counted(points: Path) -> None:
    table = read_table(points)
    with pytest.raises(UserError, match=r"who = a.*at least 3 distinct x"):
        fit_groups(table, "who", "power", "Model Size", "acc")
    more = pd.concat([table.assign(who="a"), table.assign(who="b"), table.head(2).assign(who=np.nan)])
    fits = fit_groups(more, "who", "power", "Model Size", "acc")
    assert all("2 rows have no who and are in no group" in fit.warnings for fit in fits.values())
    with pytest.raises(UserError, match="a value in some row"):
        fit_groups(table.assign(who=np.nan), "who", "power", "Model Size", "acc")


def test_a_column_called_state_of_something_else_leaves_no_row_out(points: Path) -> None:
    assert fit_law(read_table(points, {"state": "who"}), "power", "Model Size", "acc").n == 4


def test_columns_of_a_collected_table_are_what_they_are_called_or_refused(tmp_path: Path) -> None:
    def collected(text: str) -> Tables:
        (tmp_path / "theirs.csv").write_text(text)
        return collect_table(tmp_path / "theirs.csv")

    for text, said in (("top1,top1_error\n50,50\n", "fractions"), ("parameters,top1\n85M,0.5\n", "it holds '85M'"),
                       ("top1\nabc\n", "it holds 'abc'")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            collected(text)
    assert collected("top1,parameters\n0.5,1e6\n-,85M\n").runs[["top1", "parameters"]].count().tolist() == [1, 1]
    assert collected("top1,parameters\n0.5,1e6\n0.6,inf\n").runs["parameters"].count() == 1
    assert len(collected("top1,state\n0.5,finished\n0.6,crashed\n").completed) == 2
    tables = collected("top1,state\n0.5,completed\n0.6,failed\n")
    assert list(tables.excluded["reason"]) == ["failed, not completed"]


def test_gaps_in_a_row_mean_the_least_that_they_can(tmp_path: Path) -> None:
    (tmp_path / "theirs.csv").write_text("parameters,top1,strategy,protocol\n1e6,0.5,ar,finetune\n3e6,0.56,,\n")
    tables = update_tables(tmp_path / "theirs.csv", tmp_path / "tables")
    assert tables.runs[["strategy", "protocol"]].to_numpy().tolist() == [["ar", "finetune"], ["all", "finetune"]]
    write_report(tmp_path / "tables")


def test_a_table_is_collected_reported_on_and_planned_from(tmp_path: Path) -> None:
    generator, rows = np.random.default_rng(0), []
    for n in (1e6, 3e6, 1e7, 3e7):
        for d in (1e6, 1e7, 1e8):
            error = 0.05 + 40 / n**0.45 + 33 / d**0.4
            rows.append((n, d, 100 * (1 - error * np.exp(generator.normal(0, 0.01))), n * d / 1e15))
    table = pd.DataFrame(rows, columns=["weights", "images", "acc", "hours"])
    table.loc[0, "acc"] = np.nan
    table.to_csv(tmp_path / "theirs.csv", index=False)
    mapping = ["parameters=weights", "images_seen=images", "top1=acc / 100", "total_gpu_seconds=3600 * hours"]
    cli.collect(tmp_path / "theirs.csv", tmp_path / "tables", mapping)
    tables = read_tables(tmp_path / "tables")
    assert len(tables.completed) == 11
    assert list(tables.excluded["run"]) == ["row-01"]
    assert set(tables.runs["size"]) == {"1M", "3M", "10M", "30M"}
    assert tables.completed["top1_error"].to_numpy() == pytest.approx(1 - table["acc"].dropna().to_numpy() / 100)
    text = write_report(tmp_path / "tables").read_text()
    assert {"accuracy_parameters", "law_parameters", "contours", "cost"} <= {
        path.stem for path in (tmp_path / "tables" / "report" / "figures").glob("*.svg")
    }
    assert "11 of 12" in text
    cli.plan_next(tmp_path / "tables" / "runs.csv", 100.0)
    with pytest.raises(UserError, match="a column top1, top1_error"):
        collect_table(tmp_path / "theirs.csv")
    with pytest.raises(UserError, match="nothing for run folders"):
        update_tables(tmp_path, tmp_path / "tables", mapping={"N": "weights"})
