"""What a scan takes and gives, checked once, so that backends compute and do nothing else."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ScanInputs(NamedTuple):
    """The arguments of `selective_scan`, in its order. Shapes:

    u, delta, z (batch, length, channels); A (channels, state); B, C (batch, length, groups, state); D, delta_bias
    (channels); order (groups, length), or None for the order of the tokens as they stand.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    delta_softplus: bool = False
    order: Tensor | None = None

    @property
    def groups(self) -> int:
        return self.B.shape[2]

    @property
    def accumulator(self) -> torch.dtype:
        """Precision of the state: float64 if any input has it, else float32."""
        tensors = [value for value in self if isinstance(value, Tensor)]
        return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


class ScanGradients(NamedTuple):
    """Gradients of the eight differentiable inputs, in their order; None where the input was None."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None


def interval(length: int) -> int:
    """Tokens between two kept states: ceil(sqrt(length)) keeps as many states as a chunk recomputes."""
    return math.isqrt(length - 1) + 1


def check(inputs: ScanInputs) -> None:
    """Raises ValueError with the first shape that does not fit."""
    if inputs.u.dim() != 3:
        raise ValueError(f"selective_scan: u has shape {tuple(inputs.u.shape)}, not (batch, length, channels)")
    if inputs.A.dim() != 2 or inputs.B.dim() != 4:
        raise ValueError(
            f"selective_scan: A has shape {tuple(inputs.A.shape)}, not (channels, state), or B has shape "
            f"{tuple(inputs.B.shape)}, not (batch, length, groups, state)"
        )
    batch, length, channels = inputs.u.shape
    groups, state = inputs.groups, inputs.A.shape[1]
    if min(batch, length, channels, groups, state) < 1 or channels % groups:
        shape = tuple(inputs.u.shape)
        raise ValueError(
            f"selective_scan: {channels} channels do not split over {groups} groups, or u {shape} is empty"
        )
    expected = {
        "delta": (batch, length, channels),
        "A": (channels, state),
        "B": (batch, length, groups, state),
        "C": (batch, length, groups, state),
        "D": (channels,),
        "z": (batch, length, channels),
        "delta_bias": (channels,),
        "order": (groups, length),
    }
    for name, shape in expected.items():
        value = getattr(inputs, name)
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"selective_scan: {name} has shape {tuple(value.shape)}, expected {shape}")
