"""The random numbers of a forward pass, drawn outside: no model uses a generator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Noise(NamedTuple):
    """Uniforms in [0, 1), None where nothing asks for them.

    `mask` (batch, patches) ranks the patches for MAE, the lowest being visible; `drop_path` (batch, depth, 2) decides
    over each sample's two branches of each block.
    """

    mask: Tensor | None = None
    drop_path: Tensor | None = None

    def to(self, device: torch.device | str) -> Noise:
        """The same numbers on `device`."""
        return Noise(*(None if part is None else part.to(device, non_blocking=True) for part in self))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rate of each block: the first `depth` entries of [0] + linspace(0, rate, depth) (sheet, section 3).

    Blocks 0 and 1 get 0, and the last block stays one step below `rate`, as in the official code.
    """
    return [0.0] + [rate * i / (depth - 1) for i in range(depth - 1)]


def drop_branch(branch: Tensor, keep: Tensor | None) -> Tensor:
    """Stochastic depth (Huang et al. 2016): a residual branch (batch, length, channels) times `keep` (batch,).

    `keep` is 0 for a dropped branch and 1 / (1 - rate) for the others; without it, the branch as it is.
    """
    return branch if keep is None else branch * keep.to(branch.dtype)[:, None, None]
