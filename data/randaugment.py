"""RandAugment as named by rand-m9-mstd0.5-inc1: two operations an image, magnitude N(9, 0.5) of 10, rising severity.

The operations and their ranges are those of Cubuk et al. 2020 in the form used for finetuning since DeiT (Touvron et
al. 2021): each of the two is drawn from 15 and done with probability 1/2; more magnitude is always more change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from data.images import Pixels

OPERATIONS_AN_IMAGE: Final = 2
PROBABILITY: Final = 0.5
MAGNITUDE: Final = (9.0, 0.5)  # mean and standard deviation
LARGEST: Final = 10.0
_EACH = 5  # uniforms an operation: which, whether, two for the normal draw of the magnitude, sign
DRAWS: Final = OPERATIONS_AN_IMAGE * _EACH

Colour = tuple[int, ...]
Operation = Callable[[Image.Image, float, bool, Colour], Image.Image]
"""(image, level from 0 to 1, whether a sign is negative, colour of what comes into view)"""


def _affine(image: Image.Image, matrix: tuple[float, float, float, float, float, float], fill: Colour) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=fill
    )


def _signed(value: float, negative: bool) -> float:
    return -value if negative else value


def _enhanced(kind: type) -> Operation:
    def operate(image: Image.Image, level: float, negative: bool, fill: Colour) -> Image.Image:
        result: Image.Image = kind(image).enhance(max(0.1, 1 + _signed(0.9 * level, negative)))
        return result

    return operate


def _solarize_add(image: Image.Image, level: float, negative: bool, fill: Colour) -> Image.Image:
    added = min(128, int(110 * level))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _rotate(image: Image.Image, level: float, negative: bool, fill: Colour) -> Image.Image:
    return image.rotate(_signed(30 * level, negative), Image.Resampling.BICUBIC, fillcolor=fill)


OPERATIONS: Final[dict[str, Operation]] = {
    "autocontrast": lambda image, level, negative, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, level, negative, fill: ImageOps.equalize(image),
    "invert": lambda image, level, negative, fill: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": lambda image, level, negative, fill: ImageOps.posterize(image, max(1, 4 - int(4 * level))),
    "solarize": lambda image, level, negative, fill: ImageOps.solarize(image, 256 - min(256, int(256 * level))),
    "solarize_add": _solarize_add,
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, level, negative, fill: _affine(
        image, (1, _signed(0.3 * level, negative), 0, 0, 1, 0), fill
    ),
    "shear_y": lambda image, level, negative, fill: _affine(
        image, (1, 0, 0, _signed(0.3 * level, negative), 1, 0), fill
    ),
    "translate_x": lambda image, level, negative, fill: _affine(
        image, (1, 0, _signed(0.45 * level, negative) * image.width, 0, 1, 0), fill
    ),
    "translate_y": lambda image, level, negative, fill: _affine(
        image, (1, 0, 0, 0, 1, _signed(0.45 * level, negative) * image.height), fill
    ),
}


def rand_augment(pixels: Pixels, name: str, numbers: list[float], fill: Colour) -> Pixels:
    """(height, width, 3) after two random operations; `numbers` are DRAWS uniforms, `fill` is the mean colour."""
    assert name == "rand-m9-mstd0.5-inc1"
    image = None
    for start in range(0, DRAWS, _EACH):
        which, whether, radius, angle, sign = numbers[start : start + _EACH]
        if whether >= PROBABILITY:
            continue
        normal = math.sqrt(-2 * math.log1p(-radius)) * math.cos(2 * math.pi * angle)
        magnitude = min(max(MAGNITUDE[0] + MAGNITUDE[1] * normal, 0.0), LARGEST)
        operation = list(OPERATIONS.values())[int(which * len(OPERATIONS))]
        image = operation(Image.fromarray(pixels) if image is None else image, magnitude / LARGEST, sign < 0.5, fill)
    return pixels if image is None else np.asarray(image)
