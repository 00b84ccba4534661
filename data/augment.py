"""What happens to an image between its file and the batch. Every draw depends on (seed, epoch, sample) alone.

Training: crop, horizontal flip, RandAugment, random erasing, in the order of the recipes (timm's), all on uint8. The
flip is drawn here and done on the device, with the normalisation (data.batch). So RandAugment, whose vertical shear
keeps the left edge where it is, gets those images mirrored and gives them back unmirrored; the erased box and its
noise are symmetric. Evaluation: resize and centre crop.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from data import draws
from data.config import Augmentation
from data.images import JPEG_MAGIC, Decoder, Pixels, jpeg_size
from data.randaugment import DRAWS as RANDAUGMENT_DRAWS
from data.randaugment import rand_augment
from scaling.errors import UserError

ATTEMPTS: Final = 10
RATIO: Final = (3 / 4, 4 / 3)
PADDING: Final = 4  # pixels, the usual crop for 32 x 32 images (Lee et al. 2015; He et al. 2016, section 4.2)
ERASED_AREA: Final = (0.02, 1 / 3)
ERASED_RATIO: Final = (0.3, 1 / 0.3)

_FLIP = 0
_CROP = slice(1, 3 + 2 * ATTEMPTS)
_RANDAUGMENT = slice(_CROP.stop, _CROP.stop + RANDAUGMENT_DRAWS)
_ERASE = slice(_RANDAUGMENT.stop, _RANDAUGMENT.stop + 3 + 2 * ATTEMPTS)

Box = tuple[int, int, int, int]
"""top, left, height, width."""


class TrainTransform:
    """Pixels of training samples, as functions of (epoch, sample)."""

    def __init__(self, augmentation: Augmentation, seed: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.augmentation = augmentation
        self.seed = seed
        self.mean, self.std = np.array(mean) * 255, np.array(std) * 255
        self.fill = tuple(round(value) for value in self.mean.tolist())
        erases, augments = augmentation.erasing > 0, bool(augmentation.randaugment)
        self.decode = Decoder()
        self.count = _ERASE.stop if erases else _RANDAUGMENT.stop if augments else _CROP.stop

    def draws(self, epoch: int, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, draws) uniform numbers for these samples in this epoch."""
        return draws.uniforms(draws.key(self.seed, "augment", epoch), samples, self.count)

    def flipped(self, numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n,) which samples are to be flipped on the device; () for one row of `draws`."""
        return (numbers[..., _FLIP] < 0.5) & self.augmentation.flip

    def __call__(self, data: bytes, numbers: NDArray[np.float64], epoch: int, sample: int) -> Pixels:
        """(image_size, image_size, 3) of an image file, with one row of `draws`; not flipped yet."""
        pixels = self._cropped(data, numbers[_CROP].tolist())
        if self.augmentation.randaugment:
            columns = slice(None, None, -1 if self.flipped(numbers) else 1)
            operations = numbers[_RANDAUGMENT].tolist()
            pixels = rand_augment(pixels[:, columns], self.augmentation.randaugment, operations, self.fill)[:, columns]
        if self.augmentation.erasing:
            pixels = self._erased(pixels, numbers[_ERASE].tolist(), epoch, sample)
        return pixels

    def _cropped(self, data: bytes, numbers: list[float]) -> Pixels:
        size = self.augmentation.image_size
        if self.augmentation.crop == "none":
            return exact(self.decode(data), size)
        if self.augmentation.crop == "pad":
            return padded_crop(self.decode(data), size, numbers[0], numbers[1])
        if not data.startswith(JPEG_MAGIC):
            pixels = self.decode(data)
            return resized(
                pixels, random_resized_box(pixels.shape[0], pixels.shape[1], self.augmentation.scale, numbers), size
            )
        height, width = jpeg_size(data)
        box = random_resized_box(height, width, self.augmentation.scale, numbers)
        # A smaller decoding is enough as long as the crop still has the pixels asked for.
        least = (math.ceil(size * height / box[2]), math.ceil(size * width / box[3]))
        pixels = self.decode(data, least, rows=box[0] + box[2])
        return resized(pixels, scaled_box(box, (height, width), pixels.shape[:2]), size)

    def _erased(self, pixels: Pixels, numbers: list[float], epoch: int, sample: int) -> Pixels:
        """Random erasing (Zhong et al. 2020) with noise N(mean, std) a pixel, rounded and clipped to uint8."""
        height, width = pixels.shape[:2]
        box = erased_box(height, width, numbers[1:]) if numbers[0] < self.augmentation.erasing else None
        if box is None:
            return pixels
        top, left, h, w = box
        noise = draws.normals(draws.key(self.seed, "erase", epoch), sample, h * w * 3).reshape(h, w, 3)
        pixels = pixels.copy()
        pixels[top : top + h, left : left + w] = np.clip(np.rint(noise * self.std + self.mean), 0, 255)
        return pixels


def random_resized_box(height: int, width: int, scale: tuple[float, float], numbers: list[float]) -> Box:
    """The crop of RandomResizedCrop (Szegedy et al. 2015): an area in `scale` of the image, aspect 3/4 to 4/3.

    Ten attempts; then the largest centred box with an aspect in that range. `numbers` are 2 * ATTEMPTS + 2 uniforms.
    """
    for attempt in range(ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[2 + 2 * attempt])
        aspect = _log_uniform(RATIO, numbers[3 + 2 * attempt])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(numbers[0] * (height - h + 1)), int(numbers[1] * (width - w + 1)), h, w
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def erased_box(height: int, width: int, numbers: list[float]) -> Box | None:
    """The box of random erasing, or None after ten attempts without one that fits."""
    for attempt in range(ATTEMPTS):
        area = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * numbers[2 + 2 * attempt])
        aspect = _log_uniform(ERASED_RATIO, numbers[3 + 2 * attempt])
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(numbers[0] * (height - h + 1)), int(numbers[1] * (width - w + 1)), h, w
    return None


def _log_uniform(bounds: tuple[float, float], number: float) -> float:
    low, high = math.log(bounds[0]), math.log(bounds[1])
    return math.exp(low + (high - low) * number)


def scaled_box(box: Box, size: tuple[int, int], decoded: tuple[int, ...]) -> Box:
    """A box in an image of `size`, in the same image decoded at a smaller size, or in full but for rows below it."""
    if decoded[1] == size[1]:
        return box
    y, x = decoded[0] / size[0], decoded[1] / size[1]
    top, left = min(int(box[0] * y), decoded[0] - 1), min(int(box[1] * x), decoded[1] - 1)
    bottom = min(decoded[0], max(top + 1, round((box[0] + box[2]) * y)))
    right = min(decoded[1], max(left + 1, round((box[1] + box[3]) * x)))
    return top, left, bottom - top, right - left


def padded_crop(pixels: Pixels, size: int, down: float, right: float) -> Pixels:
    """A random crop after a border of PADDING zeros; `down` and `right` in [0, 1)."""
    height, width = pixels.shape[:2]
    if min(height, width) + 2 * PADDING < size:
        valid = f"images of at least {size - 2 * PADDING} pixels a side, or another crop"
        raise UserError("augmentation.crop", "pad", valid, why=f"an image has {width} x {height}")
    canvas = np.zeros((height + 2 * PADDING, width + 2 * PADDING, 3), np.uint8)
    canvas[PADDING:-PADDING, PADDING:-PADDING] = pixels
    top, left = int(down * (canvas.shape[0] - size + 1)), int(right * (canvas.shape[1] - size + 1))
    return canvas[top : top + size, left : left + size]


def resized(pixels: Pixels, box: Box, size: int | tuple[int, int]) -> Pixels:
    """The box of the image, scaled to `size` (a side, or height and width) with antialiased bicubic interpolation."""
    top, left, h, w = box
    target = (size, size) if isinstance(size, int) else size
    cut = pixels[top : top + h, left : left + w]
    if (h, w) == target:
        return cut
    # Torch takes its fast path for 8-bit channels-last images, which a (height, width, 3) array is. What comes out is
    # one plane a channel in memory, as a batch holds it.
    image = torch.from_numpy(np.require(cut, requirements="W")).permute(2, 0, 1)[None]
    scaled = F.interpolate(image, size=target, mode="bicubic", antialias=True)
    result: Pixels = scaled[0].permute(1, 2, 0).numpy()
    return result


def exact(pixels: Pixels, size: int) -> Pixels:
    """The image as it is; UserError when it has another size."""
    if pixels.shape[:2] != (size, size):
        found = f"an image has {pixels.shape[1]} x {pixels.shape[0]}"
        raise UserError(
            "augmentation", "none", f"images of {size} x {size}, or another crop and eval_resize", why=found
        )
    return pixels


class EvaluationTransform:
    """Pixels of evaluation samples: resize, then the centre crop of image_size."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation
        self.decode = Decoder()

    def __call__(self, data: bytes) -> Pixels:
        """(image_size, image_size, 3) of an image file."""
        pixels = self.decode(data)
        size = self.augmentation.image_size
        if self.augmentation.eval_resize == "none":
            return exact(pixels, size)
        height, width = pixels.shape[:2]
        target = (self.augmentation.eval_side, self.augmentation.eval_side)
        if self.augmentation.eval_resize == "aspect":
            scale = self.augmentation.eval_side / min(height, width)
            target = (max(target[0], round(height * scale)), max(target[1], round(width * scale)))
        pixels = resized(pixels, (0, 0, height, width), target)
        top, left = (target[0] - size) // 2, (target[1] - size) // 2
        return pixels[top : top + size, left : left + size]
