from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.augment import resized
from data.images import decode
from scaling.bench.loader import LoaderCase, loader_bench, write_pictures
from scaling.errors import UserError

CASE = LoaderCase(images=8, height=75, width=100, image_size=32, micro_batch=4)


def test_the_report_names_every_stage_and_both_baselines() -> None:
    report = loader_bench(CASE, torch.device("cpu"), rounds=2)
    names = [row["name"] for row in report["results"]]
    assert names == ["read", "decode", "augment", "collate", "to device", "loader", "pillow folder", "cat"]
    for row in report["results"]:
        assert row["images_per_second"] == pytest.approx(8 / row["median"])
        assert row["rounds"] == 2
    assert set(report["ratios"]) == {"loader to pillow folder", "loader and device to pillow folder", "cat to read"}


def test_images_must_fill_batches() -> None:
    with pytest.raises(UserError, match="multiple of the micro-batch"):
        loader_bench(LoaderCase(images=10, micro_batch=4), torch.device("cpu"))


def test_pixels_are_pillows_on_the_pictures_of_the_bench(tmp_path: Path) -> None:
    case = LoaderCase(images=3)
    write_pictures(tmp_path, case)
    for path in tmp_path.rglob("*.jpg"):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        box = (20, 40, 310, 400)
        cut = image.crop((box[1], box[0], box[1] + box[3], box[0] + box[2]))
        expected = np.asarray(cut.resize((192, 192), Image.Resampling.BICUBIC)).astype(int)
        found = resized(decode(path.read_bytes()), box, 192).astype(int)
        assert np.mean(np.abs(found - expected) <= 1) >= 0.99
