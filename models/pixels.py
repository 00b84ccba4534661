"""What both pretraining objectives predict, and what they return."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """`loss` scalar; `loss_per_position` (length,), mean over the batch; `prediction` (batch, length, patch values)."""

    loss: Tensor
    loss_per_position: Tensor
    prediction: Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """images (batch, channels, size, size) to (batch, patches, patch values): raster order; a patch's values by row,
    column, channel (sheet 2)."""
    patches = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patchify`: (batch, patches, patch values) of a square grid to (batch, channels, size, size)."""
    side = math.isqrt(patches.shape[1])
    grid = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, (side, side))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def pixels_of(prediction: Tensor, images: Tensor, patch_size: int, target: str) -> Tensor:
    """Predictions (batch, patches, patch values) in raster order as pixels in the range of `images`.

    Of normalized targets a model predicts a patch up to its mean and deviation, which are taken from the true one, as
    MAE's own pictures do.
    """
    if target == "raw":
        return prediction
    patches = patchify(images.float(), patch_size)
    variance, mean = patches.var(dim=2, keepdim=True), patches.mean(dim=2, keepdim=True)
    return prediction * (variance + 1e-6).sqrt() + mean


def targets_of(images: Tensor, patch_size: int, target: str) -> Tensor:
    """Pixels to predict, float32 (batch, patches, patch values).

    `raw`, or `normalized` by each patch's own mean and unbiased variance plus 1e-6 (He et al. 2022; sheet 2).
    """
    patches = patchify(images.float(), patch_size)
    if target == "raw":
        return patches
    variance, mean = patches.var(dim=2, keepdim=True), patches.mean(dim=2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()
