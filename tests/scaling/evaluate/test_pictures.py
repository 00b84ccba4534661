"""Reconstructions: what is drawn is what the models predict, put back where it belongs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.pixels import patchify, pixels_of, targets_of, unpatchify
from scaling import rundir
from scaling.evaluate.pictures import GAP, MARGIN, SHOWN, TILE
from scaling.reading import load_run
from scaling.run import execute
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
