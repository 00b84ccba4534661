"""Parts that the Triton kernels share: what a channel's token goes through, and sums over states and over channels.

Channels lie in a row, (1, channels), and states in a tile, (N, channels), so that Triton gives both one layout: a
thread holds all states of its channels. Sums over states then stay inside a thread.
"""

# Triton's language in Python's syntax: its values have no Python types, and its tuples grow by addition alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, no-warn-unreachable, disable-error-code="assignment,var-annotated"
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


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
    """The tokens of a chunk in the order of visits, and for each the channels that exist. A chunk that is CUT has
    tokens beyond the end: they read the last token's row, masked."""
    places, masks = (), ()
    for k in tl.static_range(EVERY):
        i = tl.minimum(start + k, length - 1) if CUT else start + k
        places = places + (tl.load(order + i) if ORDERED else i,)
        masks = masks + (mask & (tl.full(mask.shape, start + k, tl.int32) < length) if CUT else mask,)
    return places, masks


@triton.jit
def read_tokens(pointer, stride, places, masks, EVERY: tl.constexpr):
    """A chunk's rows as they are stored. All loads of a chunk stand before its stores: the compiler, which cannot tell
    their addresses apart, lets none pass."""
    rows = ()
    for k in tl.static_range(EVERY):
        rows = rows + (tl.load(pointer + places[k] * stride, mask=masks[k], other=0.0),)
    return rows


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
def store_channel_sums(
    pointer, row, first, second, order, start, length, ORDERED: tl.constexpr, CUT: tl.constexpr
):  # fmt: skip
    """Sums over channels of two tiles, those of visits `start` and `start` + 1, into their rows at `pointer`.

    A sum across threads takes two instructions a halving for every value. Instead the two tiles go through shared
    memory once: `tl.split` wants the halves that it gives in one thread, and the layout that Triton picks for that has
    a state in a thread with all its channels.
    """
    N: tl.constexpr = first.shape[0]
    BLOCK: tl.constexpr = first.shape[1]
    both = tl.reshape(tl.permute(tl.join(first, second), (1, 2, 0)), (BLOCK // 2, 2, 2 * N))
    even, odd = tl.split(tl.permute(both, (0, 2, 1)))
    sums = tl.sum(even + odd, axis=0)
    j = tl.arange(0, 2 * N)
    i = start + j // N
    there = i < length
    t = tl.load(order + tl.minimum(i, length - 1)) if ORDERED else i
    at = pointer + t * row + j % N
    if CUT:
        tl.store(at, sums, mask=there)
    else:
        tl.store(at, sums)
