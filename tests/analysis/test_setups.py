"""What one line or median of speeds may hold, read off pictures and tables of runs on several numbers of devices."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from analysis import sections_speed
from analysis.collect import collect_runs
from analysis.figures import accuracy_speed
from analysis.figures_speed import scaling_efficiency, speed, step_parts
from analysis.setups import setups
from analysis.tables import Tables
from analysis.throughput import both_efficiencies, speeds
from scaling.rundir import CONFIG, METRICS
from tests.analysis.folders import BATCH, write_study


def again(folder: Path, name: str, record: dict[str, Any], config: dict[str, Any]) -> None:
    """A copy of a run with other values in every record and in its config."""
    copy = shutil.copytree(folder, folder.with_name(folder.name + name))
    lines = [json.loads(line) | record for line in (copy / METRICS).read_text().splitlines()]
    (copy / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (copy / CONFIG).write_text(yaml.safe_dump(yaml.safe_load((copy / CONFIG).read_text()) | config))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path, strategies=("scratch",), sizes=("pico", "nano"))


def spread(study: Path) -> Tables:
    """The study on one device, and again on eight, six times as fast."""
    for folder in list(study.glob("*-s0-*")):
        rate = json.loads((folder / METRICS).read_text().splitlines()[-1])["images_per_second"]
        again(folder, "-8", {"devices": 8, "images_per_second": 6 * rate, "step_seconds": BATCH / rate / 6}, {})
    return collect_runs(study)


def test_no_line_joins_runs_on_different_numbers_of_devices(study: Path) -> None:
    picture = speed(spread(study))
    assert picture is not None
    drawn = [line.get_ydata() for line in picture.figure.axes[0].lines if len(line.get_xdata()) == 2]
    rates = picture.data.sort_values("parameters").groupby("devices")["images_per_second"].agg(list)
    assert sorted(map(list, drawn)) == sorted(rates)
    assert rates[8][0] == pytest.approx(6 * rates[1][0])
    named = {text.get_text() for text in picture.figure.axes[2].texts}
    assert named == {"Scratch (control), 1 device", "Scratch (control), 8 devices"}


def test_no_bar_joins_them_either(study: Path) -> None:
    picture = step_parts(spread(study))
    assert picture is not None
    assert len(picture.data) == 4
    assert picture.data["step_seconds"].nunique() == 4


def test_every_line_of_efficiency_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Finetunings at 64 px on eight devices stand beside those at 32 px, not in their median."""
    study = write_study(tmp_path, strategies=("ar",), sizes=("pico",))
    spread(study)
    for folder in list(study.glob("*-finetune-*")):
        given = yaml.safe_load((folder / CONFIG).read_text())
        again(folder, "-64", {}, {"train": given["train"] | {"image_size": 64}})
    table = both_efficiencies(speeds(collect_runs(study)))
    picture = scaling_efficiency(table)
    assert picture is not None
    names = [text.get_text() for text in picture.figure.axes[0].texts]
    assert len(names) == len(set(names)) == 3
    assert "Autoregressive pico, finetune, 64 px, single, 256 images" in names
    assert table.groupby("devices")["efficiency"].agg(set).to_dict() == {1.0: {1.0}, 8.0: {0.75}}


def test_an_efficiency_is_of_one_kind_of_step(tmp_path: Path) -> None:
    """Of a compiled run on eight devices alone there is none, and it is not in the median of the others."""
    study = write_study(tmp_path, strategies=("scratch",), sizes=("pico",))
    for config in study.glob(f"*/{CONFIG}"):
        config.write_text(config.read_text() + "compile: false\n")
    spread(study)
    (eight,) = study.glob("*-8")
    rate = json.loads((eight / METRICS).read_text().splitlines()[-1])["images_per_second"]
    again(eight, "-c", {"images_per_second": 2 * rate}, {"compile": True})
    table = both_efficiencies(speeds(collect_runs(study)))
    assert table.set_index("devices")["efficiency"].to_dict() == {1.0: 1.0, 8.0: 0.75}


def test_what_a_size_was_varied_in_parts_runs_and_what_sizes_differ_in_does_not(study: Path) -> None:
    pico, nano = (next(study.glob(f"*-{size}-*")) for size in ("pico", "nano"))
    again(pico, "-c", {}, {"compile": True})
    for folder in (pico, nano):
        (folder / CONFIG).write_text((folder / CONFIG).read_text() + "compile: false\n")
    lines = [json.loads(line) | {"micro_batch": 8} for line in (nano / METRICS).read_text().splitlines()]
    (nano / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = speeds(collect_runs(study))
    assert sorted(table["setup"]) == ["scratch, compiled", "scratch, eager", "scratch, eager"]


def test_what_the_table_of_speeds_has_a_column_of_stands_in_no_name(study: Path) -> None:
    """A ViT at both sizes, and the Mamba compiled and not: compilation alone has no column."""
    for folder in list(study.glob("*-s0-*")):
        again(folder, "-v", {}, {"compile": False})
        again(folder, "-c", {}, {"compile": True})
        (folder / CONFIG).write_text((folder / CONFIG).read_text() + "compile: false\n")
    tables = collect_runs(study)
    runs = speeds(tables)
    runs["encoder"] = ["vit" if name.endswith("-v") else "mamba" for name in runs["run"]]
    rows = re.findall(r"<tr><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td>", sections_speed.speed(tables, runs))
    shown = [tuple(re.sub("<[^>]*>", "", cell) for cell in row) for row in rows]
    kinds = [("Scratch (control), compiled", "mamba"), ("Scratch (control), eager", "mamba")]
    assert sorted(shown) == sorted([*kinds, ("Scratch (control), eager", "vit")] * 2)


def test_runs_without_records_have_no_setup() -> None:
    assert setups(pd.DataFrame({"stage": [], "strategy": [], "size": []})).empty


@pytest.mark.parametrize(
    ("name", "value"),
    [("devices", 0), ("devices", -1), ("devices", 1e-320), ("images_per_second", 1e308)],
)
def test_a_rate_of_impossible_numbers_is_none(study: Path, name: str, value: float) -> None:
    """The run stands in no picture of speeds, and the others are drawn."""
    pico = next(study.glob("*-pico-*"))
    again(pico, "-x", {name: value}, {})
    tables = collect_runs(study)
    pictures = [accuracy_speed(tables), speed(tables) if name != "devices" else None]
    for picture in filter(None, pictures):
        assert len(picture.svg) > 1000
        assert sorted(picture.data["size"]) == ["nano", "pico"]
    assert speeds(tables).set_index("run")["images_per_second_per_device"].isna().sum() == 1
