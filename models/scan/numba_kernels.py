"""The loops of the numba backend: forward, and backward from the states kept before every so many tokens.

Arrays are addresses of flat memory: tokens (batch, length, channels) with the channels of each group padded to whole
vectors; B and C (batch, length, groups, state); A and the states (channels / 16, state, 16), so that the loop over n
reads straight on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from models.scan.numba_vectors import (
    LANES,
    LN2,
    add,
    exp2,
    fma,
    integer,
    jit,
    load,
    mul,
    put,
    repeat,
    sigmoid,
    softplus,
    spread,
    store,
    sub,
    total,
)

BLOCK = 128
"""Channels of a task at most: 16 states of 128 channels are 8 KiB, a third of a first-level cache with those of A."""
SAVED_ROWS = 4
"""Rows of a token that the way back reads again: delta after softplus, its derivative, delta * u, dy."""


class Sizes(NamedTuple):
    batch: int
    length: int
    channels: int
    groups: int
    state: int
    every: int  # tokens between two kept states
    softplus: bool


class Arrays(NamedTuple):
    """The inputs; A is scaled by log2(e), absent bias and D are zeros, an absent z is 0."""

    u: Any
    delta: Any
    A: Any
    B: Any
    C: Any
    D: Any
    z: Any
    bias: Any
    order: Any  # (groups, length)


class Adjoints(NamedTuple):
    """What the backward fills. Tasks add to A, D and bias, which each thread has its own of; dB and dC have a part for
    each block of channels of a group."""

    u: Any
    delta: Any
    A: Any
    B: Any
    C: Any
    D: Any
    z: Any
    bias: Any


class Scratch(NamedTuple):
    """A thread's own working memory, and what one chunk of tokens leaves in it for the way back."""

    h: Any  # (BLOCK / 16, state, 16): the state
    g: Any  # the same: its adjoint
    rows: Any  # (every, SAVED_ROWS, BLOCK)
    decays: Any  # (every, BLOCK / 16, state, 16): exp(delta A)
    decayed: Any  # the same: exp(delta A) times the state before the token
    sums: Any  # (state, 16): sums over the vectors of a token


@jit
def clear(target: Any, count: Any) -> None:
    for i in range(0, count, LANES):
        store(target, i, spread(np.float32(0)))


@jit
def copy(target: Any, to: Any, source: Any, start: Any, count: Any) -> None:
    for i in range(0, count, LANES):
        store(target, to + i, load(source, start + i))


@jit
def blocks_of(sizes: Any) -> Any:
    """Blocks of channels that a group is cut into."""
    return (sizes.channels // sizes.groups + BLOCK - 1) // BLOCK


@jit
def place(task: Any, sizes: Any) -> Any:
    """Of a task: batch element, group, block, and its first and last channel."""
    blocks, per_group = blocks_of(sizes), sizes.channels // sizes.groups
    block, group = task % blocks, (task // blocks) % sizes.groups
    first = group * per_group + block * BLOCK
    return task // (blocks * sizes.groups), group, block, first, min(first + BLOCK, (group + 1) * per_group)


@jit
def delta_at(row: Any, x: Any, sizes: Any, arrays: Any) -> Any:
    """softplus(delta + bias) and its derivative for the vector at channel x of a token."""
    raw = add(load(arrays.delta, row + x), load(arrays.bias, x))
    if sizes.softplus:
        return softplus(raw), sigmoid(raw)
    return raw, spread(np.float32(1))


@jit
def forward(start: Any, stop: Any, sizes: Any, arrays: Any, h: Any, out: Any, states: Any) -> None:
    """Tasks start .. stop; h is the thread's own state; fills `states` unless it is 0."""
    N = sizes.state
    for task in range(start, stop):
        b, group, _, first, last = place(task, sizes)
        clear(h, BLOCK * N)
        for i in range(sizes.length):
            if states != 0 and i % sizes.every == 0:
                kept = ((i // sizes.every) * sizes.batch + b) * sizes.channels * N
                copy(states, kept + first * N, h, 0, (last - first) * N)
            token = b * sizes.length + integer(arrays.order, group * sizes.length + i)
            row, inner = token * sizes.channels, (token * sizes.groups + group) * N
            for x in range(first, last, LANES):
                dt, _ = delta_at(row, x, sizes, arrays)
                u = load(arrays.u, row + x)
                drive, y = mul(dt, u), mul(load(arrays.D, x), u)
                for n in range(N):
                    at = (x - first) * N + n * LANES
                    decay = exp2(mul(dt, load(arrays.A, first * N + at)))
                    value = fma(drive, repeat(arrays.B, inner + n), mul(decay, load(h, at)))
                    store(h, at, value)
                    y = fma(value, repeat(arrays.C, inner + n), y)
                if arrays.z != 0:
                    gate = load(arrays.z, row + x)
                    y = mul(y, mul(gate, sigmoid(gate)))
                store(out, row + x, y)


@jit
def recompute(chunk_start: Any, task: Any, sizes: Any, arrays: Any, dout: Any, scratch: Any, to: Any) -> None:
    """Runs a chunk forward again from scratch.h; dz and dC need no way back and are written here."""
    N = sizes.state
    b, group, block, first, last = place(task, sizes)
    for i in range(chunk_start, min(chunk_start + sizes.every, sizes.length)):
        token = b * sizes.length + integer(arrays.order, group * sizes.length + i)
        row, inner = token * sizes.channels, (token * sizes.groups + group) * N
        clear(scratch.sums, N * LANES)
        for x in range(first, last, LANES):
            dt, slope = delta_at(row, x, sizes, arrays)
            u, dy = load(arrays.u, row + x), load(dout, row + x)
            dgate = dy
            if arrays.z != 0:
                gate = load(arrays.z, row + x)
                s = sigmoid(gate)
                silu = mul(gate, s)
                dgate = mul(dy, fma(silu, sub(spread(np.float32(1)), s), s))
                dy = mul(dy, silu)
            drive, y = mul(dt, u), mul(load(arrays.D, x), u)
            for n in range(N):
                at = (x - first) * N + n * LANES
                decay = exp2(mul(dt, load(arrays.A, first * N + at)))
                before = mul(decay, load(scratch.h, at))
                value = fma(drive, repeat(arrays.B, inner + n), before)
                store(scratch.h, at, value)
                store(scratch.decays, (i - chunk_start) * BLOCK * N + at, decay)
                store(scratch.decayed, (i - chunk_start) * BLOCK * N + at, before)
                store(scratch.sums, n * LANES, fma(value, dy, load(scratch.sums, n * LANES)))
                y = fma(value, repeat(arrays.C, inner + n), y)
            if arrays.z != 0:
                store(to.z, row + x, mul(dgate, y))
            local = (i - chunk_start) * SAVED_ROWS * BLOCK + x - first
            store(scratch.rows, local, dt)
            store(scratch.rows, local + BLOCK, slope)
            store(scratch.rows, local + 2 * BLOCK, drive)
            store(scratch.rows, local + 3 * BLOCK, dy)
        part = block * sizes.batch * sizes.length * sizes.groups * N
        for n in range(N):
            put(to.C, part + inner + n, total(load(scratch.sums, n * LANES)))


@jit
def reverse(chunk_start: Any, task: Any, sizes: Any, arrays: Any, scratch: Any, to: Any) -> None:
    """Walks a chunk back; scratch.g is the adjoint of the state after it and becomes that of the state before it."""
    N = sizes.state
    b, group, block, first, last = place(task, sizes)
    for i in range(min(chunk_start + sizes.every, sizes.length) - 1, chunk_start - 1, -1):
        token = b * sizes.length + integer(arrays.order, group * sizes.length + i)
        row, inner = token * sizes.channels, (token * sizes.groups + group) * N
        clear(scratch.sums, N * LANES)
        for x in range(first, last, LANES):
            local = (i - chunk_start) * SAVED_ROWS * BLOCK + x - first
            dt, slope = load(scratch.rows, local), load(scratch.rows, local + BLOCK)
            drive, dy = load(scratch.rows, local + 2 * BLOCK), load(scratch.rows, local + 3 * BLOCK)
            ddrive, ddt = spread(np.float32(0)), spread(np.float32(0))
            for n in range(N):
                at = (x - first) * N + n * LANES
                value = fma(dy, repeat(arrays.C, inner + n), load(scratch.g, at))
                store(scratch.sums, n * LANES, fma(value, drive, load(scratch.sums, n * LANES)))
                ddrive = fma(value, repeat(arrays.B, inner + n), ddrive)
                product = mul(value, load(scratch.decayed, (i - chunk_start) * BLOCK * N + at))
                store(to.A, first * N + at, fma(product, dt, load(to.A, first * N + at)))
                ddt = fma(product, load(arrays.A, first * N + at), ddt)
                store(scratch.g, at, mul(value, load(scratch.decays, (i - chunk_start) * BLOCK * N + at)))
            u = load(arrays.u, row + x)
            store(to.u, row + x, fma(ddrive, dt, mul(dy, load(arrays.D, x))))
            store(to.D, x, fma(dy, u, load(to.D, x)))
            raw = mul(fma(ddt, spread(np.float32(LN2)), mul(ddrive, u)), slope)  # A held log2(e)
            store(to.delta, row + x, raw)
            store(to.bias, x, add(raw, load(to.bias, x)))
        part = block * sizes.batch * sizes.length * sizes.groups * N
        for n in range(N):
            put(to.B, part + inner + n, total(load(scratch.sums, n * LANES)))


@jit
def backward(start: Any, stop: Any, sizes: Any, arrays: Any, states: Any, dout: Any, scratch: Any, to: Any) -> None:
    """Tasks start .. stop."""
    N, every = sizes.state, sizes.every
    for task in range(start, stop):
        b, _, _, first, last = place(task, sizes)
        clear(scratch.g, BLOCK * N)
        for c in range((sizes.length - 1) // every, -1, -1):
            kept = (c * sizes.batch + b) * sizes.channels * N
            copy(scratch.h, 0, states, kept + first * N, (last - first) * N)
            recompute(c * every, task, sizes, arrays, dout, scratch, to)
            reverse(c * every, task, sizes, arrays, scratch, to)
