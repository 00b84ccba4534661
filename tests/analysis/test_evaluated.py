"""What the report says of frozen features, other test sets and reconstructions."""

import base64
import io
import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image

from analysis.collect import collect_runs
from analysis.evaluated import inference, other_evaluations
from analysis.figures import accuracies
from analysis.report import write_report
from scaling.rundir import EVALUATIONS, INFERENCE, PICTURES, SUMMARY
from tests.analysis.folders import BATCH, STEPS, append, evaluation, write_study


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


def test_other_test_sets_are_of_one_resolution_and_of_the_longest_training(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("scratch",), sizes=("pico",), lengths=(1, 2))
    for run in study.glob("scratch*"):
        length = json.loads((run / SUMMARY).read_text())["images_seen"] // (STEPS * BATCH)
        found = {32: 0.1 * length, 48: 0.2 * length}
        rows = [evaluation(found[px], step=length * STEPS, dataset="imagenet-a", resolution=px) for px in found]
        append(run / EVALUATIONS, *rows)
    section = other_evaluations(collect_runs(study))
    rows = [re.findall(r">([^<>]+)</td>", row) for row in section.split("<tr>")[2:]]
    assert [(row[4], row[8], row[-1]) for row in rows] == [("32", "20.0 %", "1"), ("48", "40.0 %", "1")]


def test_other_test_sets_say_nothing_of_how_sure_the_accuracy_is(tmp_path: Path) -> None:
    """They stand last in the list, as in the README; the accuracy is still one on 10,000 images."""
    study = write_study(tmp_path, strategies=("scratch",), sizes=("pico",))
    (run,) = study.glob("scratch*")
    append(run / EVALUATIONS, evaluation(0.2, dataset="imagenet-a", images=7500))
    table = accuracies(collect_runs(study))
    top1 = table["top1"].item()
    assert table["test_images"].item() == 10_000
    assert table["half_width"].item() == pytest.approx(1.96 * math.sqrt(top1 * (1 - top1) / 10_000))


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


def test_speed_of_inference_is_the_median_over_runs(tmp_path: Path) -> None:
    """Three seeds on one device, one of them on another; an unfinished file is left out."""
    study = write_study(tmp_path, strategies=("scratch",), sizes=("pico",), seeds=(0, 1, 2, 3, 4))
    facts = {"batch": 256, "resolution": 32, "precision": "bf16", "output": "logits"}
    devices = (("A", 1000.4), ("A", 3000.0), ("A", 2000.0), ("B", 500.0))
    for run, (device, rate) in zip(sorted(study.glob("scratch*")), devices, strict=False):
        (run / INFERENCE).write_text(json.dumps(facts | {"device": device, "images_per_second": rate}))
    (sorted(study.glob("scratch*"))[4] / INFERENCE).write_text('{"batch": 2')
    section = inference(collect_runs(study))
    rows = re.findall(r"<tr>(.*?)</tr>", section)[1:]
    cells = [re.sub(r"<[^>]+>", "|", row).replace("||", "|").strip("|") for row in rows]
    assert cells == [
        "scratch|mamba|pico|finetune|logits|32|256|bf16|A|2000|3",
        "scratch|mamba|pico|finetune|logits|32|256|bf16|B|500|1",
    ]


def test_a_study_without_them_has_neither_section(tmp_path: Path) -> None:
    text = write_report(write_study(tmp_path, strategies=("scratch",), sizes=("pico",))).read_text()
    assert "reconstructions" not in text.lower()
    assert 'id="other"' not in text
    assert 'id="inference"' not in text
