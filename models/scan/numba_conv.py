"""Backend `numba` of the causal convolution: one pass over the tokens of a batch element, channels in vector lanes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.scan.conv_inputs import ConvGradients, ConvInputs
from models.scan.numba_threads import addresses, pad, positions, share, unpad
from models.scan.numba_vectors import LANES, add, fma, integer, jit, load, mul, sigmoid, spread, store, sub


class Sizes(NamedTuple):
    length: int
    channels: int  # of x, padded to whole vectors
    groups: int
    width: int
    silu: bool


class Arrays(NamedTuple):
    """Addresses: x (batch, length, channels), weight (width, groups, channels), bias (groups, channels), order (groups,
    length)."""

    x: Any
    weight: Any
    bias: Any
    order: Any


@jit
def tap(b: Any, group: Any, i: Any, sizes: Any, arrays: Any) -> Any:
    """Offset in x of the token that group visits i-th."""
    return (b * sizes.length + integer(arrays.order, group * sizes.length + i)) * sizes.channels


@jit
def preactivation(b: Any, group: Any, i: Any, c: Any, sizes: Any, arrays: Any) -> Any:
    wide = group * sizes.channels + c
    y = load(arrays.bias, wide)
    for j in range(min(sizes.width, i + 1)):
        at = (sizes.width - 1 - j) * sizes.groups * sizes.channels + wide
        y = fma(load(arrays.weight, at), load(arrays.x, tap(b, group, i - j, sizes, arrays) + c), y)
    return y


@jit
def run_forward(start: Any, stop: Any, sizes: Any, arrays: Any, out: Any) -> None:
    """Batch elements start .. stop; out (batch, length, groups, channels)."""
    for b in range(start, stop):
        for group in range(sizes.groups):
            for i in range(sizes.length):
                row = tap(b, group, i, sizes, arrays) * sizes.groups + group * sizes.channels
                for c in range(0, sizes.channels, LANES):
                    y = preactivation(b, group, i, c, sizes, arrays)
                    if sizes.silu:
                        y = mul(y, sigmoid(y))
                    store(out, row + c, y)


@jit
def run_backward(start: Any, stop: Any, sizes: Any, arrays: Any, dout: Any, dx: Any, dweight: Any, dbias: Any) -> None:
    """Batch elements start .. stop; adds to dx, and to the thread's own dweight and dbias."""
    for b in range(start, stop):
        for group in range(sizes.groups):
            for i in range(sizes.length):
                row = tap(b, group, i, sizes, arrays) * sizes.groups + group * sizes.channels
                for c in range(0, sizes.channels, LANES):
                    dy, wide = load(dout, row + c), group * sizes.channels + c
                    if sizes.silu:
                        y = preactivation(b, group, i, c, sizes, arrays)
                        s = sigmoid(y)
                        dy = mul(dy, fma(mul(y, s), sub(spread(np.float32(1)), s), s))
                    store(dbias, wide, add(dy, load(dbias, wide)))
                    for j in range(min(sizes.width, i + 1)):
                        at = (sizes.width - 1 - j) * sizes.groups * sizes.channels + wide
                        token = tap(b, group, i - j, sizes, arrays) + c
                        store(dweight, at, fma(dy, load(arrays.x, token), load(dweight, at)))
                        store(dx, token, fma(dy, load(arrays.weight, at), load(dx, token)))


def sizes_of(inputs: ConvInputs) -> Sizes:
    length, channels = inputs.x.shape[1:]
    return Sizes(length, -(-channels // LANES) * LANES, inputs.groups, inputs.weight.shape[1], inputs.silu)


def arrays_of(inputs: ConvInputs, sizes: Sizes) -> Arrays:
    wide = sizes.groups * sizes.channels
    bias = torch.zeros(wide) if inputs.bias is None else pad(inputs.bias, wide, sizes.groups)
    return Arrays(
        x=pad(inputs.x, sizes.channels, 1),
        weight=pad(inputs.weight.T, wide, sizes.groups),
        bias=bias,
        order=positions(inputs.order, sizes.groups, sizes.length),
    )


def forward(inputs: ConvInputs) -> Tensor:
    sizes = sizes_of(inputs)
    arrays = arrays_of(inputs, sizes)
    batch, wide = inputs.x.shape[0], sizes.groups * sizes.channels
    out = torch.empty(batch, sizes.length, wide)
    given, to = addresses(arrays), out.data_ptr()
    share(batch, lambda _, start, stop: run_forward(start, stop, sizes, given, to))
    return unpad(out, inputs.weight.shape[0], sizes.groups).to(inputs.x.dtype)


def backward(inputs: ConvInputs, dout: Tensor) -> ConvGradients:
    sizes = sizes_of(inputs)
    arrays = arrays_of(inputs, sizes)
    batch, wide = inputs.x.shape[0], sizes.groups * sizes.channels
    dout = pad(dout, wide, sizes.groups)
    given, above = addresses(arrays), dout.data_ptr()
    threads = min(batch, torch.get_num_threads())
    dx = torch.zeros(batch, sizes.length, sizes.channels)
    dweight, dbias = torch.zeros(threads, sizes.width, wide), torch.zeros(threads, wide)

    def run(thread: int, start: int, stop: int) -> None:
        own = (tensor.data_ptr() for tensor in (dx, dweight[thread], dbias[thread]))
        run_backward(start, stop, sizes, given, above, *own)

    share(batch, run)
    rows = inputs.weight.shape[0]
    return ConvGradients(
        unpad(dx, inputs.x.shape[2], 1).to(inputs.x.dtype),
        unpad(dweight.sum(0), rows, sizes.groups).T.to(inputs.weight.dtype).contiguous(),
        None if inputs.bias is None else unpad(dbias.sum(0), rows, sizes.groups).to(inputs.bias.dtype),
    )
