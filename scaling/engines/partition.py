"""Where DeepSpeed's ZeRO optimizers keep this rank's share of the parameters, read from their own maps.

All stages keep fp32 master weights in flat buffers, one or more a parameter group, and update those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scaling.fragment import Fragment


@dataclass(frozen=True)
class Piece:
    """Elements [offset, offset + length) of the flattened parameter `name` lie in a flat buffer from `start` on."""

    name: str
    shape: tuple[int, ...]
    flat: int
    start: int
    offset: int
    length: int

    def of(self, flats: list[Tensor]) -> Fragment:
        """This piece of the buffers, or of others laid out like them (moments, average)."""
        return Fragment(self.shape, self.offset, flats[self.flat].detach().narrow(0, self.start, self.length))


@dataclass(frozen=True)
class Partition:
    """This rank's flat fp32 buffers, which the optimizer updates, and the piece of each parameter in them."""

    flats: list[Tensor]
    pieces: list[Piece]


def partition_of_replicated(zero: Any, objective: nn.Module) -> Partition:
    """Stages 1 and 2: a group's parameters are laid end to end and cut into equal runs, one a rank."""
    flats = list(zero.single_partition_of_fp32_groups)
    groups = {id(parameter): number for number, group in enumerate(zero.bit16_groups) for parameter in group}
    pieces = []
    for name, parameter in objective.named_parameters():
        held, flat, shape = parameter._hp_mapping, groups[id(parameter)], tuple(parameter.shape)  # type: ignore[attr-defined]
        if held is None:  # all of it is another rank's
            pieces.append(Piece(name, shape, flat, 0, 0, 0))
            continue
        place, source = held.hp_fragment_address, held.lp_fragment_address
        pieces.append(Piece(name, shape, flat, place.start, source.start, place.numel))
    return Partition(flats, pieces)


def partition_of_sharded(zero: Any, objective: nn.Module, rank: int) -> Partition:
    """Stage 3: every parameter is cut into equal runs, one a rank, the last ones padded."""
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    pieces = []
    for flat, group in enumerate(zero.fp16_groups):
        start = 0
        for parameter in group:
            run, total = parameter.partition_numel(), math.prod(parameter.ds_shape)
            offset = min(rank * run, total)
            length = min(run, total - offset)
            pieces.append(Piece(names[id(parameter)], tuple(parameter.ds_shape), flat, start, offset, length))
            start += run
    return Partition(list(zero.fp32_partitioned_groups_flat), pieces)


def reduced_gradients(zero: Any, *, offload: bool) -> list[Tensor]:
    """This rank's share of the averaged gradients, after the last backward pass of a step and before the update."""
    if offload:
        flats = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
        return [flat.grad for flat in flats]
    return [gradient for group in zero.averaged_gradients.values() for gradient in group]
