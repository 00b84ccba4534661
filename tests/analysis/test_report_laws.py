"""What the report says of laws and cost, on studies whose laws are known because their runs were written so."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import style
from analysis.benches import efficiencies, read_benches, steps
from analysis.collect import collect_runs
from analysis.figures import LENGTHS_SHOWN, accuracies, accuracy, at_full_length
from analysis.figures_compare import loss_to_accuracy, ranks
from analysis.figures_planes import along, finetuned, plane_fits
from analysis.figures_speed import scaling_efficiency, step_rates
from analysis.foreign import collect_table
from analysis.published import SHIPPED, read_published
from analysis.report import Wishes, write_report
from analysis.tables import Tables
from scaling.errors import UserError
from tests.analysis.folders import BATCH, ERROR, STEPS, write_study

SIZES = ("pico", "nano", "micro", "tiny", "small")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two strategies, five sizes, two seeds, three lengths of training."""
    return write_study(tmp_path_factory.mktemp("long"), "long", ("ar", "supervised"), SIZES, (0, 1), lengths=(1, 4, 16))


@pytest.fixture(scope="module")
def tables(long: Path) -> Tables:
    return collect_runs(long)


def test_a_curve_over_one_variable_holds_the_other(tables: Tables) -> None:
    runs = finetuned(tables)
    assert set(along(runs, "parameters").groupby("label")["total_images_seen"].unique().map(tuple)) == {
        (2 * 16 * STEPS * BATCH,), (16 * STEPS * BATCH,)
    }  # fmt: skip
    assert set(along(runs, "total_images_seen")["size"]) == {"small"}
    assert len(along(runs, "total_train_flops")) == len(runs) == 60


def test_the_plane_of_size_and_images_recovers_what_made_the_runs(tables: Tables) -> None:
    fits, refused = plane_fits(tables)
    assert not refused
    for name, fit in fits.items():
        assert fit.parameters["alpha"].value == pytest.approx(-ERROR[name][1], rel=0.15)
        assert fit.parameters["beta"].value == pytest.approx(0.4, rel=0.15)
        assert fit.parameters["E"].value == pytest.approx(ERROR[name][0], rel=0.15)


def noisy_plane(seed: int) -> pd.DataFrame:
    """Five sizes, five lengths, three seeds: every cell off the law by its own 1 %, every run by 1 % more."""
    generator, rows = np.random.default_rng(seed), []
    for n in np.geomspace(3e5, 3e7, 5):
        for d in np.geomspace(1e5, 1e8, 5):
            cell = (0.05 + 40 / n**0.45 + 33 / d**0.40) * np.exp(generator.normal(0, 0.01))
            rows += [(n, d, k, cell * np.exp(generator.normal(0, 0.01))) for k in range(3)]
    return pd.DataFrame(rows, columns=["parameters", "total_images_seen", "seed", "top1_error"])


def test_the_plane_is_recovered_within_its_intervals_when_sizes_scatter_too(tmp_path: Path) -> None:
    truth = {"E": 0.05, "alpha": 0.45, "beta": 0.40, "a": 0.40 / 0.85}
    found: dict[str, list[float]] = {name: [] for name in truth}
    inside = 0
    for seed in range(6):
        noisy_plane(seed).to_csv(tmp_path / "points.csv", index=False)
        fit = plane_fits(collect_table(tmp_path / "points.csv"))[0]["all"]
        for name, value in truth.items():
            found[name].append(fit.parameters[name].value)
            low, high = fit.parameters[name].interval_95 or (np.nan, np.nan)
            inside += low < value < high
    assert inside >= 20  # of 24: at 95 % less happens once in 300 times, were they independent
    for name, value in truth.items():
        assert np.median(found[name]) == pytest.approx(value, rel=0.05), name


def test_of_many_lengths_a_few_are_drawn_and_all_stand_in_the_csv(tmp_path: Path) -> None:
    lengths = np.geomspace(1e5, 1e8, 12)
    rows = [(n, d, 0.05 + 40 / n**0.45 + 33 / d**0.40) for n in (1e6, 1e7, 1e8) for d in lengths]
    columns = ["parameters", "total_images_seen", "top1_error"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "points.csv", index=False)
    picture = accuracy(collect_table(tmp_path / "points.csv"), "parameters")
    assert picture is not None
    assert len(picture.data) == 36
    lines = [line for line in picture.figure.axes[0].lines if line.get_linestyle() == ":"]
    drawn = sorted(float(line.get_ydata()[-1]) for line in lines)
    ends = 1 - (0.05 + 40 / 1e8**0.45 + 33 / lengths**0.40)
    assert len(drawn) == LENGTHS_SHOWN
    assert (drawn[0], drawn[-1]) == pytest.approx((ends[0], ends[-1]))


def test_ranks_count_seeds_and_not_lengths(tables: Tables) -> None:
    table = ranks(at_full_length(accuracies(tables)))
    assert set(table["seeds"]) == {2}
    assert set(table.loc[table["rank"] == 1, "strategy"]) == {"ar"}
    assert set(table.loc[table["strategy"] == "ar", "wins"]) == {1.0}


def test_the_ranking_of_a_size_is_by_accuracy_and_not_by_parameters() -> None:
    """Two encoders and two resolutions, so that arms of one size have several numbers of parameters."""
    rows = [
        (
            "finetune",
            strategy,
            encoder,
            pixels,
            size,
            0,
            parameters + 1e4 * (encoder == "vit") + 1e3 * (pixels == 64),
            1,
        )
        for strategy, encoder, pixels in itertools.product(("ar", "mae"), ("mamba", "vit"), (32, 64))
        for size, parameters in (("pico", 1e5), ("nano", 2e5))
    ]
    names = ["protocol", "strategy", "encoder", "resolution", "size", "seed", "parameters", "top1"]
    data = pd.DataFrame(rows, columns=names)
    data["top1"] = np.random.default_rng(0).permutation(len(data)) / len(data)
    table = ranks(data)
    assert table["size"].tolist() == ["pico"] * 8 + ["nano"] * 8
    assert table["rank"].tolist() == [*range(1, 9)] * 2
    assert table.groupby("size")["mean"].agg(lambda means: means.is_monotonic_decreasing).all()


def test_losses_lead_to_the_accuracy_of_their_own_child(tables: Tables) -> None:
    picture = loss_to_accuracy(tables)
    assert picture is not None
    assert set(picture.data["strategy"]) == {"ar"}
    assert np.allclose(picture.data["loss_before"], 0.2 + 0.8 * (1 - picture.data["top1"]), rtol=0.02)


def test_the_report_has_every_picture_of_laws_and_marks_what_others_published(long: Path, tmp_path: Path) -> None:
    bench = {"bench": "scaling", "case": {"strategy": "ar", "encoder": "mamba", "size": "tiny", "stage": "pretrain"},
             "results": [_rank("weak", "single", 1, 8, 10.0, 1.0), _rank("weak", "fsdp", 2, 16, 9.0, 0.9)]}  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    wishes = Wishes((tmp_path / "bench.json",), SHIPPED, target=0.8, price=2.0)
    text = write_report(long, tmp_path / "report", wishes=wishes).read_text()
    names = {path.stem for path in (tmp_path / "report" / "figures").glob("*.csv")}
    assert {"contours", "rollout", "ranking", "loss_to_accuracy", "step_parts", "resources", "efficiency", "law_images",
            "exponents_parameters", "accuracy_images"} <= names  # fmt: skip
    assert "Hollow diamonds are published numbers" in text
    assert "arXiv 2406.07537" in text
    assert "What 80.0 % top-1 cost" in text
    assert "nearest point" in text
    differences = pd.read_csv(tmp_path / "report" / "figures" / "exponents_parameters.csv")
    assert list(differences["minus"].dropna()) == ["supervised"]


def _rank(kind: str, engine: str, ranks: int, batch: int, rate: float, share: float) -> dict[str, object]:
    return {"kind": kind, "engine": engine, "ranks": ranks, "global_batch": batch,
            "images_per_second_per_device": rate, "efficiency": share}  # fmt: skip


def test_benches_become_tables_and_the_single_rank_is_every_engines_baseline(tmp_path: Path) -> None:
    rows = [_rank("weak", "single", 1, 8, 10.0, 1.0), _rank("weak", "ddp", 2, 16, 9.0, 0.9),
            _rank("weak", "fsdp", 2, 16, 8.0, 0.8),
            {"kind": "weak", "engine": "fsdp", "ranks": 4, "error": "lost"}]  # fmt: skip
    (tmp_path / "scaling.json").write_text(json.dumps({"bench": "scaling", "case": {"size": "tiny"}, "results": rows}))
    step = {"name": "numba eager", "step": {"median": 0.5, "low": 0.4, "high": 0.6}, "images_per_second": 16.0,
            "mfu": None, "peak_memory_bytes": 1, "scan_share": {"median": 0.3}}  # fmt: skip
    report = {"bench": "step", "case": {"size": "tiny"}, "results": [step, {"name": "triton", "error": "no memory"}]}
    (tmp_path / "step.json").write_text(json.dumps(report))
    reports = read_benches([tmp_path / "scaling.json", tmp_path / "step.json"])
    cells = efficiencies(reports)
    assert cells[["engine", "devices", "batch", "efficiency"]].to_numpy().tolist() == [
        ["ddp", 1, 8.0, 1.0], ["fsdp", 1, 8.0, 1.0], ["ddp", 2, 8.0, 0.9], ["fsdp", 2, 8.0, 0.8]
    ]  # fmt: skip
    assert list(steps(reports)["error"].fillna("")) == ["", "no memory"]
    assert steps(reports)["scan_share"].iloc[0] == 0.3
    gpu = {"bench": "gpu", "sections": {"steps": {"rows": [report]}, "kernels": {"rows": [{"operator": "scan"}]}}}
    (tmp_path / "gpu.json").write_text(json.dumps(gpu))
    assert read_benches([tmp_path / "gpu.json"]) == [report]
    for other in ({}, {"bench": "gpu", "sections": {}}):
        (tmp_path / "other.json").write_text(json.dumps(other))
        with pytest.raises(UserError, match="bench step"):
            read_benches([tmp_path / "other.json"])


@pytest.mark.parametrize(
    "wrong", [{"ranks": 0}, {"ranks": "two"}, {"global_batch": -16}, {"efficiency": "all"}, {"kind": None}]
)
def test_a_bench_with_numbers_that_there_cannot_be_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    row = _rank("weak", "ddp", 2, 16, 9.0, 0.9) | wrong
    if wrong == {"kind": None}:
        del row["kind"]
    path = tmp_path / "scaling.json"
    path.write_text(json.dumps({"bench": "scaling", "case": {"size": "tiny"}, "results": [row]}))
    with pytest.raises(UserError, match="as `armscale bench` writes it"):
        read_benches([path])


def test_a_bench_whose_single_rank_failed_has_rates_and_no_efficiency(tmp_path: Path) -> None:
    rows = [{"kind": "weak", "engine": "single", "ranks": 1, "error": "no memory"},
            _rank("weak", "fsdp", 2, 16, 9.0, 0.9) | {"efficiency": None}]  # fmt: skip
    path = tmp_path / "scaling.json"
    path.write_text(json.dumps({"bench": "scaling", "case": {"strategy": "ar", "size": "tiny"}, "results": rows}))
    cells = efficiencies(read_benches([path]))
    assert list(cells["rate"]) == [9.0]
    with style.drawing():
        assert scaling_efficiency(cells) is None


def test_contenders_are_drawn_by_rate_and_told_against_the_baseline() -> None:
    rates = {"slow": 150.0, "baseline loop": 100.0, "fast": 250.0}
    case = {"strategy": "ar", "encoder": "mamba", "size": "tiny", "stage": "pretrain", "micro_batch": 8, "device": "x"}
    table = pd.DataFrame([case | {"name": name, "images_per_second": rate} for name, rate in rates.items()])
    with style.drawing():
        picture = step_rates(pd.concat([table, pd.DataFrame([case | {"name": "lost", "error": "no memory"}])]))
    assert picture is not None
    (axes,) = picture.figure.axes
    assert [bar.get_width() for bar in axes.patches] == [100.0, 150.0, 250.0]  # type: ignore[attr-defined]
    assert [text.get_text().strip() for text in axes.texts] == ["100", "150 (1.5x)", "250 (2.5x)"]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2


def test_many_cases_are_drawn_in_rows_from_small_to_large() -> None:
    case = {"strategy": "ar", "encoder": "mamba", "stage": "pretrain", "micro_batch": 8, "device": "x", "name": "fast"}
    sizes = ("base", "huge", "large", "small")
    with style.drawing():
        picture = step_rates(pd.DataFrame([case | {"size": size, "images_per_second": 9.0} for size in sizes]))
    assert picture is not None
    assert picture.figure.get_figwidth() < 12  # inches: of a wider one the page shrinks the type
    titles = [axes.get_title(loc="left") for axes in picture.figure.axes]
    assert titles == [*(f"Pretraining: {size}, 8 images" for size in ("small", "base", "large", "huge")), "", ""]


def test_no_two_names_of_published_models_overlap_whatever_our_accuracies_are(tmp_path: Path) -> None:
    write_study(tmp_path, sizes=("pico", "nano", "micro"))
    (tmp_path / "low.csv").write_text("parameters,top1\n4e5,0.1\n2e6,0.3\n")
    for tables in (
        collect_runs(tmp_path),
        collect_table(tmp_path / "low.csv", {"strategy": "'ar'", "protocol": "'finetune'"}),
    ):
        with style.drawing():
            picture = accuracy(tables, "parameters", read_published())
            assert picture is not None
            picture.figure.draw_without_rendering()
            names = {text.get_text(): text.get_window_extent() for text in picture.figure.axes[0].texts
                     if text.get_text() in set(read_published()["model"])}  # fmt: skip
        assert len(names) == len(read_published())
        for one, other in itertools.combinations(names, 2):
            assert not names[one].overlaps(names[other]), (one, other)


def test_published_numbers_have_a_source_and_a_protocol_or_are_refused(tmp_path: Path) -> None:
    table = read_published()
    assert table["top1"].between(0.7, 0.9).all()
    assert table["source"].str.len().min() > 5
    table.assign(source=np.nan).to_csv(tmp_path / "gaps.csv", index=False)
    table.assign(top1=83.2).to_csv(tmp_path / "percent.csv", index=False)
    for name, said in (("gaps", "source has gaps"), ("percent", "fraction"), ("absent", "csv file")):
        with pytest.raises(UserError, match=said):
            read_published(tmp_path / f"{name}.csv")
