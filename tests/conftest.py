"""What tests of several rooms share: a small packed data set, and what this machine must have."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

torch.set_num_threads(1)
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")  # the same cases every time: a failure there is the change's, not the draw's

SHARED = Path(__file__).resolve().parents[2] / "shared"
SHAPES = ("circle", "cross", "square")


def need(what: str, present: bool, reason: str) -> None:
    """Skips when `what` is not there, but fails where ARMSCALE_REQUIRE says that it must be."""
    if present:
        return
    if what in os.environ.get("ARMSCALE_REQUIRE", "").split(","):
        pytest.fail(f"{what} is required here: {reason}")
    pytest.skip(reason)


def draw_shape(kind: str, generator: np.random.Generator, side: int = 32) -> Image.Image:
    """A shape of random colour, place and size on a noisy ground: learnable, and no two alike."""
    ground = generator.integers(0, 80, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(ground)
    pen = ImageDraw.Draw(image)
    radius = int(generator.integers(side // 6, side // 3))
    x, y = (int(value) for value in generator.integers(radius, side - radius, 2))
    colour = tuple(int(value) for value in generator.integers(120, 256, 3))
    box = (x - radius, y - radius, x + radius, y + radius)
    if kind == "circle":
        pen.ellipse(box, fill=colour)
    elif kind == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line((x - radius, y, x + radius, y), fill=colour, width=3)
        pen.line((x, y - radius, x, y + radius), fill=colour, width=3)
    return image


def write_image_folder(folder: Path, per_class: dict[str, int]) -> Path:
    """folder/<split>/<class>/*.png with `per_class[split]` images of each shape."""
    generator = np.random.default_rng(0)
    for split, count in per_class.items():
        for shape in SHAPES:
            target = folder / split / shape
            target.mkdir(parents=True)
            for number in range(count):
                draw_shape(shape, generator).save(target / f"{number:04d}.png")
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """192 training and 48 test images of three shapes, packed by the project's own command."""
    from typer.testing import CliRunner

    from scaling.cli.data import app

    folder = tmp_path_factory.mktemp("shapes")
    images = write_image_folder(folder / "images", {"train": 64, "val": 16})
    result = CliRunner().invoke(app, ["pack", f"imagefolder:{images}", str(folder / "shards")])
    assert result.exit_code == 0, result.output
    yield folder / "shards"
