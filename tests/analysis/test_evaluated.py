"""What the report says of frozen features, other test sets and reconstructions."""

import base64
import io
import re
from pathlib import Path

from PIL import Image

from analysis.report import write_report
from scaling.rundir import EVALUATIONS, PICTURES
from tests.analysis.folders import STEPS, append, evaluation, write_study


def test_rows_beside_the_accuracy_get_a_table(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("ar", "scratch"), sizes=("pico",), seeds=(0, 1))
    for number, run in enumerate(sorted(study.glob("ar*pretrain*"))):
        early = evaluation(top1=0.99, step=STEPS // 2, protocol="knn")
        append(run / EVALUATIONS, early, evaluation(top1=0.42 + 0.02 * number, protocol="knn"))
    for run in study.glob("scratch*"):
        append(run / EVALUATIONS, evaluation(top1=0.123, dataset="imagenet-a"))
    text = write_report(study).read_text()
    section = text.partition('<section id="other">')[2].partition("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section)[1:]
    cells = [re.sub(r"<[^>]+>", "|", row).replace("||", "|").strip("|") for row in rows]
    assert cells == [
        "ar|mamba|pico|pretrain|knn|fashion-mnist|raw|43.0 %|42.0 %|44.0 %|2",
        "scratch|mamba|pico|finetune|finetune|imagenet-a|raw|12.3 %|12.3 %|12.3 %|2",
    ]


def test_sheets_of_the_run_folders_stand_in_the_page(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("ar", "mae"), sizes=("pico",), seeds=(0, 1))
    colours = {"ar": (200, 10, 10), "mae": (10, 10, 200)}
    for run in study.glob("*pretrain-s1*"):
        (run / PICTURES).mkdir()
        Image.new("RGB", (16, 16), colours[run.name.partition("-")[0]]).save(run / PICTURES / "reconstruction.png")
    text = write_report(study).read_text()
    shown = re.findall(r'data:image/png;base64,([^"]+)"', text)
    pixels = [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").getpixel((3, 3)) for data in shown]
    assert sorted(pixels) == sorted(colours.values())


def test_a_study_without_them_has_neither_section(tmp_path: Path) -> None:
    text = write_report(write_study(tmp_path, strategies=("scratch",), sizes=("pico",))).read_text()
    assert "reconstructions" not in text.lower()
    assert 'id="other"' not in text
