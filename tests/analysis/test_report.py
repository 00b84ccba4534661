"""The report: finished and half-finished studies, the same bytes each time, and how a browser sees the page."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from analysis import page, sections_speed, style
from analysis.collect import collect_runs
from analysis.figures import loss_curves
from analysis.report import write_report
from analysis.style import compact
from analysis.throughput import speeds
from scaling.errors import UserError
from scaling.rundir import STATUS, SUMMARY
from tests.analysis.folders import write_run, write_study
from tests.conftest import need

PICTURES = {"accuracy_parameters", "accuracy_flops", "throughput", "loss_pretraining", "loss_finetuning",
            "law_parameters", "law_flops", "exponents_parameters", "exponents_flops", "cost"}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with its report."""
    study = write_study(tmp_path_factory.mktemp("finished"), seeds=(0, 1))
    assert write_report(study) == study / "report" / "index.html"
    return study


def test_every_picture_has_its_three_files_and_stands_in_the_page(finished: Path) -> None:
    text = (finished / "report" / "index.html").read_text()
    files = {path.name for path in (finished / "report" / "figures").iterdir()}
    assert {f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg", "csv")} <= files
    assert set(re.findall(r'<figure id="(\w+)"', text)) == {
        name.removesuffix(".csv") for name in files if "csv" in name
    }
    assert text.count("data:image/svg+xml;base64,") == len(files) / 3
    assert not re.search(r'(src|href)="(https?:)?//', text)
    assert "36 of 36" in text
    drawn = pd.read_csv(finished / "report" / "figures" / "accuracy_parameters.csv")
    summaries = {path.parent.name: json.loads(path.read_text()) for path in finished.glob(f"*finetune*/{SUMMARY}")}
    assert {row.run: row.top1 for row in drawn.itertuples()} == {
        run: pytest.approx(summary["top1"]) for run, summary in summaries.items()
    }


def test_no_loss_curve_runs_out_of_a_shared_axis(finished: Path) -> None:
    picture = loss_curves(collect_runs(finished), pretraining=False)
    assert picture is not None
    bottom, top = picture.figure.axes[0].get_ylim()
    assert bottom < picture.data["loss"].min()
    assert picture.data["loss"].max() < top


def test_no_picture_is_shown_larger_than_it_was_drawn(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("ar",))
    picture = loss_curves(collect_runs(study), pretraining=True)
    assert picture is not None
    assert not picture.wide
    assert f'style="max-width: {96 * picture.figure.get_figwidth():.0f}px"' in page.figure(picture)


def test_a_size_alone_has_the_full_colour_of_its_strategy(tmp_path: Path) -> None:
    picture = loss_curves(collect_runs(write_study(tmp_path, strategies=("ar",), sizes=("pico",))), pretraining=True)
    assert picture is not None
    assert to_hex(picture.figure.axes[0].lines[0].get_color()) == style.hue("ar").lower()


def test_one_logged_interval_has_no_interval_of_its_rate(finished: Path) -> None:
    tables = collect_runs(finished)
    runs = speeds(tables)
    assert " to " in sections_speed.speed(tables, runs.assign(high=1.1 * runs["low"]))
    assert " to " not in sections_speed.speed(tables, runs.assign(high=runs["low"]))


def test_the_same_tables_give_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    write_report(finished / "tables", tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(files) > 15
    for path in files:
        assert (tmp_path / path).read_bytes() == (finished / "report" / path).read_bytes(), path


def test_a_half_finished_study_is_provisional_and_names_what_is_missing(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    text = (study / "study.yaml").read_text().replace("- micro", "- micro\n  - tiny")
    (study / "study.yaml").write_text(text)
    failed = write_run(study, "supervised", "tiny", state="failed")
    (failed / STATUS).write_text(json.dumps({"state": "failed", "error": "out of memory on <device 0>"}))
    page = write_report(study).read_text()
    assert "provisional" in page
    assert "failed: out of memory on &lt;device 0&gt;" in page
    assert page.count("but has no run folder") == 3
    assert failed.name not in (study / "report" / "figures" / "accuracy_parameters.csv").read_text()


def test_a_study_without_any_result_still_has_a_page(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=())
    (study / "study.yaml").write_text("name: small\naxes: {strategy: [ar], size: [pico]}\n")
    page = write_report(study).read_text()
    assert "No picture can be drawn yet" in page
    write_run(study, "ar", "pico", "pretrain", state="queued")
    assert "queued, not completed" in write_report(study).read_text()


@pytest.mark.parametrize("factor", [1.0, 1.03, 1.15, 1.3, 1.8, 2.2, 3.5, 9.0, 15.0, 50.0, 300.0, 2e3])
@pytest.mark.parametrize(("shown", "columns", "unit"), [(compact, 4, 1e5), (style.scientific, 2, 1e15)])
def test_no_two_tick_labels_touch(factor: float, shown: Any, columns: int, unit: float) -> None:
    """In the narrowest panels of parameters and of FLOPs, which are wider; and an axis has two labels to read it by."""
    for low in np.array([1.0, 1.37, 2.55, 5.1, 7.3, 9.2]) * unit:
        _labels_stand_apart(low, low * factor, shown, columns)


def _labels_stand_apart(low: float, high: float, shown: Any, columns: int) -> None:
    with style.drawing():
        figure, [[axes, *_]] = style.panels(1, columns, 11.6, 4.3)
        axes.plot([low, high], [0, 1])
        axes.margins(x=0.06)
        style.log_axis(axes, "x", [low, high], shown)
        if columns == 2:
            style.label_ends(axes, [(high, 1, "Autoregressive, 384 px", "black")])
        FigureCanvasAgg(figure).draw()
    left, right = axes.get_window_extent().x0, axes.get_window_extent().x1
    boxes = sorted((label.get_window_extent() for label in axes.get_xticklabels()), key=lambda box: box.x0)
    boxes = [box for box in boxes if left - 1 <= (box.x0 + box.x1) / 2 <= right + 1]
    assert len(boxes) >= 2, (low, high)
    assert min(after.x0 - box.x1 for box, after in itertools.pairwise(boxes)) > 4, (low, high)


def test_a_number_just_below_the_next_letter_takes_it() -> None:
    shown = {999.4: "999", 999_499: "999k", 999_999.9999: "1M", 1e6: "1M", 1.25e9: "1.25B", 0.5: "0.5", -2e3: "-2k"}
    assert {value: compact(value) for value in shown} == shown


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a study folder, or a folder that `armscale collect` wrote"):
        write_report(tmp_path)


PROBE = """<script>
addEventListener("load", () => { const images = [...document.images];
document.body.dataset.probe = JSON.stringify({ images: images.length,
  loaded: images.filter((image) => image.naturalWidth > 100).length,
  width: document.documentElement.scrollWidth, text: Math.min(...[...document.querySelectorAll("td, p, figcaption")]
    .map((element) => parseFloat(getComputedStyle(element).fontSize))) }); });
</script></body>"""


@pytest.mark.browser
def test_a_browser_shows_every_image_without_an_error_at_1280_pixels(finished: Path, tmp_path: Path) -> None:
    need("browser", shutil.which("chromium") is not None, "chromium is not installed")
    index = tmp_path / "index.html"
    index.write_text((finished / "report" / "index.html").read_text().replace("</body>", PROBE))
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--enable-logging=stderr", "--window-size=1280,2000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
        index.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in result.stderr
    probe = re.search(r'data-probe="([^"]*)"', result.stdout)
    assert probe is not None
    seen = json.loads(probe[1].replace("&quot;", '"'))
    assert seen["images"] == seen["loaded"] >= len(PICTURES)
    assert seen["width"] <= 1280
    assert seen["text"] >= 12
