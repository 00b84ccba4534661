"""A batch, and what is done with it on the device: flip and normalise, mixup, cutmix and label smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional as F

from data import draws
from data.config import Augmentation
from scaling.errors import UserError

CACHED_VALUES = 1 << 17


class Batch(NamedTuple):
    """One micro-batch of training images, on the CPU."""

    images: Tensor  # (micro, 3, height, width) uint8; not flipped yet
    labels: Tensor  # (micro,) int64
    positions: Tensor  # (micro,) int64: place of each image in the training sequence of the whole job, from 0
    flips: Tensor  # (micro,) bool: which images to flip horizontally on the device (normalize does)
    samples: Tensor  # (micro,) int64: number of each image in the index
    epoch: int  # of the first image; a batch may hold the end of one epoch and the start of the next
    images_seen: int  # images consumed by the whole job when this optimiser step is done
    skipped: tuple[str, ...]  # unreadable samples met here, each replaced by a neighbour: "shard, key: reason"


class EvaluationBatch(NamedTuple):
    """Some samples of an evaluation split, on the CPU."""

    images: Tensor  # (batch, 3, height, width) uint8
    labels: Tensor  # (batch,) int64
    samples: Tensor  # (batch,) int64: number of each image in the index


@lru_cache(maxsize=8)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
    shift = torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    shape = (1, len(mean), 1, 1)
    return scale.float().view(shape).to(device), shift.float().view(shape).to(device)


def normalize(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    flips: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """(batch, 3, height, width) float32 on `device`, contiguous: (images / 255 - mean) / std, flipped where `flips` is.

    The images cross to the device as uint8.
    """
    images = images.to(device, non_blocking=True)
    chosen = torch.zeros(len(images), dtype=torch.bool) if flips is None else flips
    chosen = chosen.to(images.device, non_blocking=True)
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), images.device)
    result = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    # A CPU takes half the time when the parts stay in its cache.
    part = max(1, CACHED_VALUES // images[0].numel()) if images.device.type == "cpu" else len(images)
    for source, target, flip in zip(images.split(part), result.split(part), chosen.split(part), strict=True):
        if flips is not None:
            # Selecting whole images is several times faster than torch.where with one condition an image.
            which = torch.arange(len(flip), device=flip.device) + len(flip) * flip
            source = torch.cat([source, source.flip(-1)]).index_select(0, which)
        target.copy_(source).mul_(scale).sub_(shift)
    return result


def mix(
    images: Tensor, labels: Tensor, positions: Tensor, augmentation: Augmentation, classes: int, *, seed: int
) -> tuple[Tensor, Tensor]:
    """(images, soft targets (batch, classes)) after mixup (Zhang et al. 2018), cutmix (Yun et al. 2019) and smoothing.

    Every group of `mix_group` consecutive positions has one draw and is mixed with itself in reverse order, so that the
    result does not depend on the micro-batch or the world size; the paper draws once a batch. Images are changed in
    place; `positions` stay on the CPU.
    Smoothing e puts e / classes on every class (Szegedy et al. 2016, section 7).
    """
    targets = smooth(labels, classes, augmentation.label_smoothing)
    if not (augmentation.mixup or augmentation.cutmix):
        return images, targets
    group = augmentation.mix_group
    first = positions[::group].cpu().numpy()
    if len(images) % group or (first % group).any():
        raise UserError("augmentation.mix_group", group, f"a divisor of the micro-batch ({len(images)})")
    numbers = draws.uniforms(draws.key(seed, "mix"), first // group, 4)
    for place, row in enumerate(numbers):
        here = slice(place * group, (place + 1) * group)
        kept = _mix_group(images[here], augmentation, row)
        targets[here] = kept * targets[here] + (1 - kept) * targets[here].flip(0)
    return images, targets


def smooth(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """(batch, classes) float32 targets: 1 - e + e / classes at the label and e / classes elsewhere."""
    return F.one_hot(labels, classes).float().mul_(1 - smoothing).add_(smoothing / classes)


def _mix_group(images: Tensor, augmentation: Augmentation, numbers: NDArray[np.float64]) -> float:
    """Mixes (group, 3, height, width) images in place with their reverse; returns the share of their own label."""
    both = augmentation.mixup > 0 and augmentation.cutmix > 0
    cuts = numbers[0] < 0.5 if both else augmentation.cutmix > 0
    alpha = augmentation.cutmix if cuts else augmentation.mixup
    share = float(betaincinv(alpha, alpha, numbers[3]))  # Beta(alpha, alpha) from a uniform draw
    if not cuts:
        images.copy_(share * images + (1 - share) * images.flip(0))
        return share
    height, width = images.shape[-2:]
    top, bottom, left, right = cut_box(height, width, share, float(numbers[1]), float(numbers[2]))
    images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return 1 - (bottom - top) * (right - left) / (height * width)


def cut_box(height: int, width: int, share: float, down: float, across: float) -> tuple[int, int, int, int]:
    """top, bottom, left, right of a box with 1 - share of the area around a uniform centre, clipped to the image."""
    h, w = int(height * (1 - share) ** 0.5), int(width * (1 - share) ** 0.5)
    y, x = int(down * height), int(across * width)
    top, left = max(0, y - h // 2), max(0, x - w // 2)
    return top, min(height, y + h // 2), left, min(width, x + w // 2)
