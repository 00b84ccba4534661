"""Encoders, objectives, the selective scan and its backends, FLOPs, conversion. Importing this imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load(path: str | Path) -> nn.Module:
    """The module in a weight file or run folder, an ARM, MAE or Classifier: on the CPU, in float32, in evaluation mode.

    Ours carry their config in the header; official ARM checkpoints (.pth, .safetensors) are read too. A Classifier maps
    normalised images (batch, channels, size, size) to logits, and all have `features(images)`, (batch, width). Raises
    UserError for a file that is missing or is neither. No pickle is ever executed.
    """
    from models.weights import read_module

    return read_module(Path(path)).float().eval()
