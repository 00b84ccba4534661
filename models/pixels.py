"""What both pretraining objectives predict, and what they return."""

from __future__ import annotations

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


def targets_of(images: Tensor, patch_size: int, target: str) -> Tensor:
    """Pixels to predict, float32 (batch, patches, patch values).

    `raw`, or `normalized` by each patch's own mean and unbiased variance plus 1e-6 (He et al. 2022; sheet 2).
    """
    patches = patchify(images.float(), patch_size)
    if target == "raw":
        return patches
    variance, mean = patches.var(dim=2, keepdim=True), patches.mean(dim=2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()
