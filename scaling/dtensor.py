"""Tensors that may be spread over ranks: this rank's part, and the whole."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor

from scaling.fragment import Fragment


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; the tensor itself where it is not spread."""
    if isinstance(tensor, Fragment):
        return tensor.elements.detach()
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered where it is spread; every rank calls it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
