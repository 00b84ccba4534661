"""Backend `torch`: the scan in plain PyTorch with a hand-written backward, for any device and for float64.

The state lives in a layout (batch, groups, state, channels), so every operation runs along contiguous channels. The
forward keeps the state before every ~sqrt(length)-th token; the backward recomputes one such chunk of states at a time
and walks it in reverse. Memory grows as batch x state x channels x sqrt(length).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.scan.inputs import ScanGradients, ScanInputs, interval

PARALLEL_ELEMENTS = 1 << 20
"""A step on fewer state elements than this is too short to share between threads: starting them costs more."""


def kept_shapes(inputs: ScanInputs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the states, (kept states, batch, groups, state, channels a group); nothing else is kept."""
    batch, length, channels = inputs.u.shape
    kept = -(-length // interval(length))
    return (kept, batch, inputs.groups, inputs.A.shape[1], channels // inputs.groups), (0,)


class Steps(NamedTuple):
    """The inputs in the order of the recurrence, time first: (length, batch, groups, channels a group or state)."""

    u: Tensor
    delta: Tensor  # after bias and softplus
    drive: Tensor  # delta * u
    A: Tensor  # (groups, state, channels a group)
    B: Tensor
    C: Tensor


def pack(tokens: Tensor, inputs: ScanInputs) -> Tensor:
    """(batch, length, channels or groups, ...) in token order -> (length, batch, groups, ...) in scan order."""
    grouped = tokens.unflatten(2, (inputs.groups, -1)) if tokens.dim() == 3 else tokens
    if inputs.order is not None:
        grouped = grouped[:, inputs.order.T, torch.arange(inputs.groups, device=tokens.device)]
    return grouped.transpose(0, 1).to(inputs.accumulator).contiguous()


def unpack(steps: Tensor, inputs: ScanInputs) -> Tensor:
    """The inverse of `pack`: (length, batch, groups, size) -> contiguous (batch, length, groups, size)."""
    grouped = steps.transpose(0, 1)
    if inputs.order is not None:
        inverse = inputs.order.argsort(dim=1)
        grouped = grouped[:, inverse.T, torch.arange(inputs.groups, device=steps.device)]
    return grouped.contiguous()


def prepare(inputs: ScanInputs) -> Steps:
    dtype = inputs.accumulator
    u, delta = pack(inputs.u, inputs), pack(inputs.delta, inputs)
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias.to(dtype).view(inputs.groups, -1)
    if inputs.delta_softplus:
        delta = F.softplus(delta)
    A = inputs.A.to(dtype).unflatten(0, (inputs.groups, -1)).transpose(1, 2).contiguous()
    return Steps(u, delta, delta * u, A, pack(inputs.B, inputs), pack(inputs.C, inputs))


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """One thread inside the block when a step is short; thousands of tiny parallel regions spin on a busy machine."""
    threads = torch.get_num_threads()
    if threads == 1 or elements >= PARALLEL_ELEMENTS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def advance(h: Tensor, decay: Tensor, steps: Steps, t: int) -> None:
    """h <- exp(delta_t A) h + delta_t B_t u_t, in place; leaves exp(delta_t A) in `decay`."""
    torch.mul(steps.delta[t].unsqueeze(2), steps.A, out=decay).exp_()
    h.mul_(decay).addcmul_(steps.B[t].unsqueeze(3), steps.drive[t].unsqueeze(2))


def forward(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output (batch, length, channels) and, if `keep`, the states before every `interval`-th token."""
    length, channels = inputs.u.shape[1:]
    steps, every = prepare(inputs), interval(length)
    shape, ungated = kept_shapes(inputs)
    h = steps.u.new_zeros(shape[1:])
    decay, matrix = torch.empty_like(h), h.flatten(0, 1)
    states = h.new_empty(shape if keep else (0,))
    y = torch.empty_like(steps.u)
    C, rows = steps.C.flatten(1, 2).unsqueeze(2), y.flatten(1, 2).unsqueeze(2)
    with threads_for(h.numel()):
        for t in range(length):
            if keep and t % every == 0:
                states[t // every] = h
            advance(h, decay, steps, t)
            torch.bmm(C[t], matrix, out=rows[t])
    if inputs.D is not None:
        y.addcmul_(steps.u, inputs.D.to(y.dtype).view(inputs.groups, -1))
    out = unpack(y, inputs).reshape(-1, length, channels)
    if inputs.z is not None:
        out = out * F.silu(inputs.z.to(y.dtype))
    return out.to(inputs.u.dtype), states, inputs.u.new_empty(ungated)


class Adjoints(NamedTuple):
    """Gradients that the reverse walk fills, laid out like `Steps`; y is filled for the gate alone."""

    delta: Tensor
    drive: Tensor
    A: Tensor  # (batch, groups, state, channels a group)
    B: Tensor
    C: Tensor
    y: Tensor


def reverse_chunk(
    steps: Steps, dy: Tensor, start: int, states: Tensor, decays: Tensor, g: Tensor, to: Adjoints
) -> None:
    """Walks tokens start + K - 1 .. start back, with g the adjoint of the state after them, left at that before them.

    states (K + 1, ...) and decays (K, ...) are filled here: states[0] holds the state before token `start`.
    """
    count = decays.shape[0]
    for k in range(count):
        torch.mul(steps.delta[start + k].unsqueeze(2), steps.A, out=decays[k]).exp_()
        torch.mul(states[k], decays[k], out=states[k + 1])
        states[k + 1].addcmul_(steps.B[start + k].unsqueeze(3), steps.drive[start + k].unsqueeze(2))
    own = slice(start, start + count)
    after = states[1 : count + 1].flatten(0, 2)
    torch.bmm(dy[own].flatten(0, 2).unsqueeze(1), after.transpose(1, 2), out=to.C[own].flatten(0, 2).unsqueeze(1))
    if to.y.numel():
        torch.bmm(steps.C[own].flatten(0, 2).unsqueeze(1), after, out=to.y[own].flatten(0, 2).unsqueeze(1))

    matrix, product = g.flatten(0, 1), torch.empty_like(g)
    for k in reversed(range(count)):
        t = start + k
        g.addcmul_(steps.C[t].unsqueeze(3), dy[t].unsqueeze(2))
        torch.bmm(steps.B[t].flatten(0, 1).unsqueeze(1), matrix, out=to.drive[t].flatten(0, 1).unsqueeze(1))
        torch.bmm(
            steps.drive[t].flatten(0, 1).unsqueeze(1), matrix.transpose(1, 2), out=to.B[t].flatten(0, 1).unsqueeze(1)
        )
        g.mul_(decays[k])
        torch.mul(g, states[k], out=product)
        to.A.addcmul_(product, steps.delta[t].unsqueeze(2))
        torch.sum(product.mul_(steps.A), 2, out=to.delta[t])


def backward(inputs: ScanInputs, states: Tensor, ungated: Tensor, dout: Tensor) -> ScanGradients:
    """Gradients of all inputs, each in the dtype of its input, from the states kept by `forward`."""
    length = inputs.u.shape[1]
    steps, every = prepare(inputs), interval(length)
    dtype, dy, silu = inputs.accumulator, dout.to(inputs.accumulator), None
    if inputs.z is not None:
        silu = F.silu(inputs.z.to(dtype))
        dy = dy * silu
    dy = pack(dy, inputs)

    g = torch.zeros_like(states[0])
    adjoints = Adjoints(
        torch.empty_like(steps.u),
        torch.empty_like(steps.u),
        torch.zeros_like(g),
        torch.empty_like(steps.B),
        torch.empty_like(steps.C),
        steps.u.new_empty(steps.u.shape if inputs.z is not None else 0),
    )
    chunk, decays = g.new_empty(every + 1, *g.shape), g.new_empty(every, *g.shape)
    with threads_for(g.numel()):
        for start in reversed(range(0, length, every)):
            count = min(every, length - start)
            chunk[0] = states[start // every]
            reverse_chunk(steps, dy, start, chunk, decays[:count], g, adjoints)
    return finish(inputs, steps, dy, dout, adjoints)


def finish(inputs: ScanInputs, steps: Steps, dy: Tensor, dout: Tensor, adjoints: Adjoints) -> ScanGradients:
    """From gradients a step to gradients of the inputs: bias, softplus, skip, gate, and back to the order of tokens."""
    du, dD, dz = adjoints.drive * steps.delta, None, None
    ddelta = adjoints.delta.addcmul_(adjoints.drive, steps.u)
    if inputs.delta_softplus:
        ddelta.mul_(-torch.expm1(-steps.delta))  # sigmoid(x) = 1 - exp(-softplus(x))
    if inputs.D is not None:
        du.addcmul_(dy, inputs.D.to(dy.dtype).view(inputs.groups, -1))
        dD = (dy * steps.u).sum((0, 1)).flatten().to(inputs.D.dtype)
    dbias = None
    if inputs.delta_bias is not None:
        dbias = ddelta.sum((0, 1)).flatten().to(inputs.delta_bias.dtype)
    if inputs.z is not None:
        y = adjoints.y
        if inputs.D is not None:
            y = y.addcmul_(steps.u, inputs.D.to(y.dtype).view(inputs.groups, -1))
        gate = inputs.z.to(y.dtype)
        sigmoid = torch.sigmoid(gate)
        slope = sigmoid * (1 + gate * (1 - sigmoid))
        dz = (unpack(y, inputs).flatten(2) * dout * slope).to(inputs.z.dtype)
    return ScanGradients(
        unpack(du, inputs).flatten(2).to(inputs.u.dtype),
        unpack(ddelta, inputs).flatten(2).to(inputs.delta.dtype),
        adjoints.A.sum(0).transpose(1, 2).flatten(0, 1).to(inputs.A.dtype),
        unpack(adjoints.B, inputs).to(inputs.B.dtype),
        unpack(adjoints.C, inputs).to(inputs.C.dtype),
        dD,
        dz,
        dbias,
    )
