"""One signature for all objectives: images (and labels) in, (loss, metrics) out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from models.noise import Noise
from models.pixels import Prediction

Measured = tuple[Tensor, dict[str, Tensor]]
"""The loss, and detached scalars by name."""


class Objective(nn.Module):
    """Wraps a module, which turns images into an output, and `measure`, which turns output and labels into a loss."""

    module: nn.Module

    def __init__(self, module: nn.Module, measure: Callable[[Any, Tensor | None], Measured]) -> None:
        super().__init__()
        self.module = module
        self.measure = measure

    def forward(self, images: Tensor, labels: Tensor | None = None, noise: Noise | None = None) -> Measured:
        """images (batch, channels, size, size), normalised; labels as `measure` takes them."""
        return self.measure(self.module(images, noise), labels)


def prediction_loss(prediction: Prediction, labels: Tensor | None) -> Measured:
    """Of ARM and MAE, whose modules hold their own targets; labels are ignored."""
    return prediction.loss, {}


def cross_entropy(logits: Tensor, labels: Tensor | None) -> Measured:
    """Of a classifier. labels: class indices (batch,), or the weights that mixup makes of them (batch, classes).

    The metric `top1`, a fraction, comes with class indices alone.
    """
    assert labels is not None, "classification needs labels"
    logits = logits.float()
    loss = F.cross_entropy(logits, labels)
    if labels.dim() == 2:
        return loss, {}
    return loss, {"top1": (logits.detach().argmax(dim=1) == labels).float().mean()}
