"""A small image folder of real JPEG and PNG files, and its shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.pack import pack


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_images(folder: Path, classes: int, each: int, size: tuple[int, int] = (40, 48), seed: int = 0) -> Path:
    """folder/CLASS/NUMBER.jpg and .png: smooth random pictures, no two alike."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        (folder / f"class-{label}").mkdir(parents=True)
        for number in range(each):
            coarse = generator.integers(0, 256, (6, 7, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
            suffix = "png" if number % 4 == 3 else "jpg"
            image.save(folder / f"class-{label}" / f"{number:03d}.{suffix}", quality=95)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train of 3 classes x 20, val of 3 x 5; images of 40 x 48 pixels."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 3, 20)
    write_images(folder / "val", 3, 5, seed=1)
    return folder


@pytest.fixture(scope="session")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images in 6 training shards and 2 of val."""
    output = tmp_path_factory.mktemp("shards") / "packed"
    pack(f"imagefolder:{images}", output, shard_samples=10)
    return output
