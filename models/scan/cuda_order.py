"""Tokens in the order of each group and back, for libraries that know one order alone."""

from __future__ import annotations

import torch
from torch import Tensor


def reorder(tokens: Tensor, order: Tensor | None, groups: int) -> Tensor:
    """(batch, length, groups * width) with each group's tokens taken in its order."""
    if order is None:
        return tokens
    grouped = tokens.unflatten(2, (groups, -1))
    return grouped[:, order.T, torch.arange(groups, device=tokens.device)].flatten(2)
