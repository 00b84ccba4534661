"""Backend `numba`: the scan on the CPU with channels in vector lanes, float32, from softplus to gate in one pass.

A task is one batch element and one block of channels of one group, small enough that its state stays in the first-level
cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.scan import numba_kernels as kernels
from models.scan.inputs import ScanGradients, ScanInputs, interval
from models.scan.numba_kernels import Adjoints, Arrays, Scratch, Sizes
from models.scan.numba_threads import addresses, pad, positions, share, unpad
from models.scan.numba_vectors import LANES, LOG2E


def sizes_of(inputs: ScanInputs) -> Sizes:
    """Channels count after padding those of each group to whole vectors."""
    batch, length, channels = inputs.u.shape
    per_group = -(-(channels // inputs.groups) // LANES) * LANES
    state = inputs.A.shape[1]
    return Sizes(
        batch, length, per_group * inputs.groups, inputs.groups, state, interval(length), inputs.delta_softplus
    )


def kept_shapes(inputs: ScanInputs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the states, (kept states, batch, channels / 16, state, 16); nothing else is kept."""
    sizes = sizes_of(inputs)
    return (-(-sizes.length // sizes.every), sizes.batch, sizes.channels // LANES, sizes.state, LANES), (0,)


def arrays_of(inputs: ScanInputs, sizes: Sizes) -> Arrays:
    def filled(tensor: Tensor) -> Tensor:
        return pad(tensor, sizes.channels, sizes.groups)

    zeros = torch.zeros(sizes.channels)
    return Arrays(
        u=filled(inputs.u),
        delta=filled(inputs.delta),
        A=filled(inputs.A.T * LOG2E).unflatten(1, (-1, LANES)).transpose(0, 1).contiguous(),
        B=inputs.B.to(torch.float32).contiguous(),
        C=inputs.C.to(torch.float32).contiguous(),
        D=zeros if inputs.D is None else filled(inputs.D),
        z=None if inputs.z is None else filled(inputs.z),
        bias=zeros if inputs.delta_bias is None else filled(inputs.delta_bias),
        order=positions(inputs.order, sizes.groups, sizes.length),
    )


def scratch_for(sizes: Sizes) -> Scratch:
    """From torch's allocator, which aligns to whole vectors."""
    block = kernels.BLOCK * sizes.state
    rows = sizes.every * kernels.SAVED_ROWS * kernels.BLOCK
    lengths = Scratch(block, block, rows, sizes.every * block, sizes.every * block, sizes.state * LANES)
    return Scratch(*torch.empty(sum(lengths)).split(lengths))


def forward(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output (batch, length, channels) and, if `keep`, the states before every `interval`-th token."""
    sizes = sizes_of(inputs)
    arrays = arrays_of(inputs, sizes)
    shape, ungated = kept_shapes(inputs)
    states = torch.empty(shape if keep else (0,))
    out = torch.empty(sizes.batch, sizes.length, sizes.channels)
    given, to, kept = addresses(arrays), out.data_ptr(), states.data_ptr() if keep else 0

    def run(_: int, start: int, stop: int) -> None:
        h = torch.empty(kernels.BLOCK * sizes.state)
        kernels.forward(start, stop, sizes, given, h.data_ptr(), to, kept)

    share(sizes.batch * sizes.groups * kernels.blocks_of(sizes), run)
    return unpad(out, inputs.u.shape[2], sizes.groups).to(inputs.u.dtype), states, inputs.u.new_empty(ungated)


def backward(inputs: ScanInputs, states: Tensor, ungated: Tensor, dout: Tensor) -> ScanGradients:
    """Gradients of all inputs, each in the dtype of its input, from the states kept by `forward`."""
    sizes = sizes_of(inputs)
    arrays, dout = arrays_of(inputs, sizes), pad(dout, sizes.channels, sizes.groups)
    given, kept, above = addresses(arrays), states.data_ptr(), dout.data_ptr()
    tokens = (sizes.batch, sizes.length, sizes.channels)
    blocks = kernels.blocks_of(sizes)
    tasks = sizes.batch * sizes.groups * blocks
    threads = min(tasks, torch.get_num_threads())
    du, ddelta = torch.empty(tokens), torch.empty(tokens)
    dz = torch.empty(tokens) if inputs.z is not None else None
    dB, dC = (torch.empty(blocks, *inputs.B.shape) for _ in range(2))
    dA = torch.zeros(threads, sizes.channels // LANES, sizes.state, LANES)
    dD, dbias = (torch.zeros(threads, sizes.channels) for _ in range(2))

    def run(thread: int, start: int, stop: int) -> None:
        scratch = scratch_for(sizes)
        own = addresses(Adjoints(du, ddelta, dA[thread], dB, dC, dD[thread], dz, dbias[thread]))
        kernels.backward(start, stop, sizes, given, kept, above, addresses(scratch), own)

    share(tasks, run)

    def like(gradient: Tensor, given: Tensor) -> Tensor:
        return unpad(gradient, inputs.u.shape[2], sizes.groups).to(given.dtype)

    return ScanGradients(
        like(du, inputs.u),
        like(ddelta, inputs.delta),
        like(dA.sum(0).transpose(0, 1).flatten(1), inputs.A).T.contiguous(),
        dB.sum(0).to(inputs.B.dtype),
        dC.sum(0).to(inputs.C.dtype),
        None if inputs.D is None else like(dD.sum(0), inputs.D),
        None if inputs.z is None or dz is None else like(dz, inputs.z),
        None if inputs.delta_bias is None else like(dbias.sum(0), inputs.delta_bias),
    )
