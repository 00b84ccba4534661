"""Parts that the Triton kernels share: what a channel's token goes through, how a chunk is read, and sums.

Channels lie in a row, (1, channels), and states in a tile, (N, channels), so that Triton gives both one layout: a
thread holds all states of its channels. Sums over states then stay inside a thread; those over channels are products of
the tensor cores.
"""

# Triton's language in Python's syntax: its values have no Python types, and its tuples grow by addition alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, no-warn-unreachable, disable-error-code="assignment,var-annotated"
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
COLUMNS = tl.constexpr(8)
"""Of the narrowest product that the tensor cores take: a chunk has no more tokens."""


@triton.jit
def softplus_base_2(x):
    """log2(1 + 2^x) = max(x, 0) + e p(e), e = 2^-|x|: with a polynomial for log2(1 + e) / e it keeps its relative
    precision where e is tiny. p is minimax on [0, 1], relative error 1.9e-7, 3.3e-7 as computed."""
    e = tl.exp2(-tl.abs(x))
    p = e * -0.012319467030465603 + 0.06360787153244019
    p = p * e - 0.15535184741020203
    p = p * e + 0.25600969791412354
    p = p * e - 0.3533948063850403
    p = p * e + 0.48006370663642883
    p = p * e - 0.7213100790977478
    p = p * e + 1.4426947832107544
    return p * e + tl.maximum(x, 0.0)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x) as the square of a reciprocal root: two instructions, where a division takes five."""
    root = tl.rsqrt(1.0 + tl.exp2(-x * LOG2E))
    return root * root


@triton.jit
def visits(order, start, length, mask, ORDERED: tl.constexpr, CUT: tl.constexpr, EVERY: tl.constexpr):
    """Where the tokens of a chunk lie behind `at_chunk`, in the order of visits, and for each the channels that exist:
    none of a token beyond the end, which the last chunk of a CUT length has."""
    places, masks = (), ()
    for k in tl.static_range(EVERY):
        i = tl.minimum(start + k, length - 1) if CUT else start + k
        # Without an order they are constants, which the loads and stores take as they are.
        places = places + (tl.load(order + i) if ORDERED else k,)
        masks = masks + (mask & (tl.full(mask.shape, start + k, tl.int32) < length) if CUT else mask,)
    return places, masks


@triton.jit
def at_chunk(pointer, stride, start, ORDERED: tl.constexpr):
    """The row of the chunk's first token; with an order, whose table counts from the first of all, that one."""
    return pointer if ORDERED else pointer + tl.cast(start, tl.int64) * stride


@triton.jit
def read_tokens(pointer, stride, places, masks, start, ORDERED: tl.constexpr, EVERY: tl.constexpr):
    """A chunk's rows as they are stored. All loads of a chunk stand before its stores: the compiler, which cannot tell
    their addresses apart, lets none pass."""
    here = at_chunk(pointer, stride, start, ORDERED)
    rows = ()
    for k in tl.static_range(EVERY):
        rows = rows + (tl.load(here + places[k] * stride, mask=masks[k], other=0.0),)
    return rows


@triton.jit
def place_matrices(B, C, state: tl.constexpr, N: tl.constexpr):
    """Pointers (2, N) to B and C of a token, as many as a warp has threads, and which of their states exist."""
    n = tl.arange(0, N)[None, :]
    return tl.where(tl.arange(0, 2)[:, None] == 0, B, C) + n, n < state


@triton.jit
def read_matrices(
    pointers, stride, places, present, start, length,
    ORDERED: tl.constexpr, CUT: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """B and C of a chunk's tokens, (2, N) each, as they are stored: a thread holds one value of a token until `both`
    hands them round. To read them ahead then costs a register a token, and thirty-two where every thread reads all."""
    here = at_chunk(pointers, stride, start, ORDERED)
    matrices = ()
    for k in tl.static_range(EVERY):
        there = present & (tl.full(present.shape, start + k, tl.int32) < length) if CUT else present
        matrices = matrices + (tl.load(here + places[k] * stride, mask=there, other=0.0),)
    return matrices


@triton.jit
def both(matrices, AXIS: tl.constexpr = 0):
    """B and C, (N, 1) each, in every thread and in float32. With another AXIS (of `opaque`) they are handed round
    anew, where the compiler would keep them since the last time, and spill them."""
    B, C = tl.split(tl.permute(opaque(matrices.to(tl.float32), AXIS), (1, 0)))
    return B[:, None], C[:, None]


@triton.jit
def read_states(pointer, stride, mask, N: tl.constexpr):
    """A tile (N, channels), row by row: loaded as one it would have another layout, and go through shared memory."""
    n = tl.arange(0, N)[:, None]
    tile = tl.zeros([N, pointer.shape[1]], tl.float32)
    for k in tl.static_range(N):
        tile = tl.where(n == k, tl.load(pointer + k * stride, mask=mask, other=0.0), tile)
    return tile


@triton.jit
def add_over_states(total, tile, weights):
    """total (1, channels) + sum over states of tile * weights, one multiply-add a state: `tl.sum` alone would
    multiply, and add in a tree.

    Row k of a tile is taken as a sum over integers, whose zeros vanish from the code: nothing is left of it.
    """
    k = tl.arange(0, tile.shape[0])[:, None]
    left = tile.to(tl.int32, bitcast=True)
    right = tl.broadcast_to(weights, tile.shape).to(tl.int32, bitcast=True)
    for state in tl.static_range(tile.shape[0]):
        row = tl.sum(tl.where(k == state, left, 0), axis=0, keep_dims=True)
        weight = tl.sum(tl.where(k == state, right, 0), axis=0, keep_dims=True)
        total += row.to(tl.float32, bitcast=True) * weight.to(tl.float32, bitcast=True)
    return total


@triton.jit
def opaque(tile, AXIS: tl.constexpr = 0):
    """The tile again, behind a sum over an axis of one. The compiler would compute all that led to an operand of a
    product a second time, in the product's layout, rather than move it there; past a sum it does not go."""
    bits = tl.expand_dims(tile.to(tl.int32, bitcast=True), AXIS)
    return tl.sum(bits, axis=AXIS).to(tl.float32, bitcast=True)


@triton.jit
def as_columns(rows, EVERY: tl.constexpr, DTYPE: tl.constexpr):
    """Rows (1, channels) of a chunk's tokens as the columns of a matrix (channels, COLUMNS)."""
    n = tl.arange(0, COLUMNS)[:, None]
    tile = tl.zeros([COLUMNS, rows[0].shape[1]], tl.float32)
    for k in tl.static_range(EVERY):
        tile = tl.where(n == k, rows[k], tile)
    return tl.trans(opaque(tile).to(DTYPE))


@triton.jit
def sum_over_channels(sums, k: tl.constexpr, tile, columns, DTYPE: tl.constexpr):
    """Puts sum over channels of tile (N, channels) * column k into column k of `sums` (N, COLUMNS).

    The product has one column that is wanted of eight and is still the cheapest sum across threads. In float32 it is
    exact to 2^-21 (three products of tf32).
    """
    N: tl.constexpr = tile.shape[0]
    BLOCK: tl.constexpr = tile.shape[1]
    # There and back: a tile that was reshaped goes to shared memory with the states of a channel side by side, as a
    # thread holds them, in stores of sixteen bytes.
    apart = tl.permute(tl.reshape(opaque(tile).to(DTYPE), (2, N // 2, BLOCK)), (2, 0, 1))
    operand = tl.permute(tl.reshape(apart, (BLOCK, N)), (1, 0))
    product = tl.dot(operand, columns, input_precision="tf32x3")  # of float32; bfloat16 has one precision
    return tl.where(tl.arange(0, COLUMNS)[None, :] == k, product, sums)


@triton.jit
def store_columns(pointer, stride, sums, places, start, length, ORDERED: tl.constexpr, EVERY: tl.constexpr):
    """The columns of a chunk's tokens into their rows of N."""
    k = tl.arange(0, COLUMNS)[None, :]
    rows = k
    if ORDERED:
        for j in tl.static_range(EVERY):
            rows = tl.where(k == j, places[j], rows)
    at = at_chunk(pointer, stride, start, ORDERED) + rows * stride + tl.arange(0, sums.shape[0])[:, None]
    tl.store(at, sums, mask=k < tl.minimum(EVERY, length - start))
