"""Reconstructions: what is drawn is what the models predict, put back where it belongs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.build import build_objective
from models.config import EncoderConfig, MAEConfig
from models.pixels import patchify, pixels_of, targets_of, unpatchify
from scaling import rundir
from scaling.environment import Rank
from scaling.evaluate.pictures import GAP, MARGIN, SHOWN, TILE
from scaling.evaluate.subject import subject_from
from scaling.execute import execute
from scaling.reading import load_run
from tests.scaling.runs import small_config, write_run


def test_patches_go_back_to_their_places() -> None:
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(unpatchify(patchify(images, 8), 8), images)


def test_perfect_predictions_are_the_image() -> None:
    images = torch.randn(2, 3, 16, 16)
    for target in ("normalized", "raw"):
        back = pixels_of(targets_of(images, 4, target), images, 4, target)
        torch.testing.assert_close(unpatchify(back, 4), images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("strategy", "rows"), [("ar", 2), ("mae", 3)])
def test_a_pretraining_leaves_its_sheet(tmp_path: Path, shards: Path, strategy: str, rows: int) -> None:
    """The first row is the test images; of MAE's last, a quarter of the patches is too."""
    folder = write_run(small_config(shards, strategy=strategy), tmp_path)
    execute(load_run(folder / rundir.CONFIG), folder)
    with Image.open(folder / "pictures" / "reconstruction.png") as sheet:
        assert sheet.size == (MARGIN + SHOWN * (TILE + GAP), rows * (TILE + GAP) + GAP)
        pixels = np.asarray(sheet.convert("RGB")).astype(int)

    def tile(row: int, column: int) -> np.ndarray:
        top, left = GAP + row * (TILE + GAP), MARGIN + column * (TILE + GAP)
        return pixels[top : top + TILE, left : left + TILE]

    assert len({tile(0, column).tobytes() for column in range(SHOWN)}) == SHOWN
    if strategy == "mae":
        side = TILE // 8  # eight patches a side
        for column in range(SHOWN):
            blocks = [(row * side, left * side) for row in range(8) for left in range(8)]
            same = sum(
                bool((tile(2, column)[y : y + side, x : x + side] == tile(0, column)[y : y + side, x : x + side]).all())
                for y, x in blocks
            )
            assert same == 16
    else:
        assert not (tile(1, 0) == tile(0, 0)).all()


def test_the_same_images_are_drawn_at_every_world_size(shards: Path) -> None:
    """Of 48 test images 5 ranks have 9 or 10 each, and the first of 50 none."""
    module = build_objective(
        EncoderConfig("vit", depth=1, width=32, image_size=32, patch_size=4),
        MAEConfig(decoder_depth=1, decoder_width=32, decoder_heads=1),
    ).get_submodule("module")
    alone = subject_from(module, str(shards), eval_resize="none")
    for ranks in (1, 5, 50):
        shared = dataclasses.replace(alone, rank=Rank(0, ranks))
        assert shared.first(12).samples.tolist() == list(range(12))
