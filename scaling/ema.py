"""Exponential average of the weights, once an optimiser step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scaling.dtensor import local


class WeightAverage:
    """average <- average + (weights - average) / time_constant, from step 0, no warm-up (sheet, section 3).

    The config gives the time constant as a fraction of the run (the paper's: 10 of 100 epochs), so that a short run is
    not dominated by its initial weights.
    """

    def __init__(self, weights: dict[str, torch.Tensor], time_constant: float) -> None:
        """`weights` are the live ones by name, which the optimizer updates where they now are."""
        assert time_constant >= 1.0
        self.weight = 1.0 / time_constant
        self.names = list(weights)
        self.average = [tensor.detach().clone() for tensor in weights.values()]
        self.parts = [local(tensor) for tensor in self.average], [local(tensor) for tensor in weights.values()]
        """This rank's parts of the averages and of the weights, the live memory."""

    @torch.no_grad()
    def update(self, taken: torch.Tensor) -> None:
        """Moves the average towards the weights; `taken` (a scalar) is 0 where the step was masked, else 1."""
        average, source = self.parts
        weight = (self.weight * taken).to(average[0])
        torch._foreach_lerp_(average, source, [weight] * len(source))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """{name: averaged tensor}, the tensors themselves."""
        return dict(zip(self.names, self.average, strict=True))

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """The weights are the averaged ones inside the block and their own again after it."""
        average, source = self.parts
        kept = [tensor.clone() for tensor in source]
        torch._foreach_copy_(source, average)
        try:
            yield
        finally:
            torch._foreach_copy_(source, kept)
