"""What the causal convolution takes and gives, checked once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ConvInputs(NamedTuple):
    """x (batch, length, channels); weight (groups * channels, width); bias (groups * channels); order (groups, length).

    Rows g * channels .. (g + 1) * channels of the weight convolve x in the order of group g.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    silu: bool = False
    order: Tensor | None = None

    @property
    def groups(self) -> int:
        return self.weight.shape[0] // self.x.shape[2]

    @property
    def accumulator(self) -> torch.dtype:
        """Precision of the sums: float64 if any input has it, else float32."""
        tensors = [value for value in self if isinstance(value, Tensor)]
        return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


class ConvGradients(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None


def check(inputs: ConvInputs) -> None:
    """Raises ValueError with the first shape that does not fit."""
    if inputs.x.dim() != 3 or inputs.weight.dim() != 2 or not inputs.x.numel() or not inputs.weight.numel():
        raise ValueError(
            f"causal_conv1d: x has shape {tuple(inputs.x.shape)}, not (batch, length, channels), or weight has shape "
            f"{tuple(inputs.weight.shape)}, not (groups * channels, width)"
        )
    length, channels = inputs.x.shape[1:]
    if inputs.weight.shape[0] % channels:
        raise ValueError(
            f"causal_conv1d: weight has {inputs.weight.shape[0]} rows, not a multiple of {channels} channels"
        )
    expected = {"bias": (inputs.weight.shape[0],), "order": (inputs.groups, length)}
    for name, shape in expected.items():
        value = getattr(inputs, name)
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"causal_conv1d: {name} has shape {tuple(value.shape)}, expected {shape}")
