"""Between tensors and the numba kernels: padding, addresses, and tasks shared between threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = TypeVar("Tensors", bound=tuple[Any, ...])


def addresses(tensors: Tensors) -> Tensors:
    """The named tuple with each contiguous tensor replaced by its address, good while the tensor lives; None by 0.

    Not through numpy: Tensor.numpy() would fix the size of memory that FSDP gives back when it lets go of gathered
    weights, and costs more than a small kernel.
    """
    kind: Callable[..., Tensors] = type(tensors)
    return kind(*(0 if x is None else x.data_ptr() for x in tensors))


def pad(tensor: Tensor, channels: int, groups: int) -> Tensor:
    """(..., channels) as contiguous float32; zeros fill up each group so that there are `channels`."""
    missing = (channels - tensor.shape[-1]) // groups
    if missing:
        tensor = F.pad(tensor.unflatten(-1, (groups, -1)), (0, missing)).flatten(-2)
    return tensor.to(torch.float32).contiguous()


def unpad(tensor: Tensor, channels: int, groups: int) -> Tensor:
    """The inverse of `pad`, contiguous."""
    if tensor.shape[-1] == channels:
        return tensor
    return tensor.unflatten(-1, (groups, -1))[..., : channels // groups].flatten(-2).contiguous()


@cache
def _in_order(groups: int, length: int) -> Tensor:
    return torch.arange(length).repeat(groups)


def positions(order: Tensor | None, groups: int, length: int) -> Tensor:
    """(groups * length) token positions as int64, in the order of each group."""
    return _in_order(groups, length) if order is None else order.to(torch.int64).contiguous()


def share(tasks: int, run: Callable[[int, int, int], None]) -> None:
    """run(thread, start, stop) for even parts of the tasks, one for each of the threads that torch may use.

    The kernels hold no GIL, so plain threads serve; numba's own threading layers do not survive being entered by two
    threads at once, as data-parallel replicas or a forward in one thread and a backward in another would.
    """
    threads = min(tasks, torch.get_num_threads())
    if threads == 1:
        run(0, 0, tasks)
        return
    bounds = [tasks * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(threads), bounds[:-1], bounds[1:]))
