"""Triton kernels of the causal convolution, one each way. A program is a tile of tokens and channels of one group."""

# Triton's language in Python's syntax: its values have no Python types, and its tuples grow by addition alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

from models.scan.triton_parts import sigmoid


@triton.jit
def read_tokens(x, stride, order, i, length, c, mask, ORDERED: tl.constexpr):
    """Tile of the tokens at positions i of a group's order, zeros outside the sequence."""
    there = (i >= 0) & (i < length)
    t = tl.load(order + i, mask=there, other=0) if ORDERED else i
    return tl.load(x + t[:, None] * stride + c[None, :], mask=there[:, None] & mask[None, :], other=0.0).to(tl.float32)


@triton.jit
def read_token(x, stride, order, i, length, c, mask, ORDERED: tl.constexpr):
    """The channels c of the token at position i of a group's order, zeros outside the sequence."""
    at = tl.full(c.shape, 0, tl.int32) + i
    t = tl.load(order + tl.minimum(tl.maximum(i, 0), length - 1)) if ORDERED else i
    return tl.load(x + t * stride + c, mask=mask & (at >= 0) & (at < length), other=0.0)


@triton.jit
def place(length, channels, groups, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    """Of a program: batch element, group, positions, channels of x and which of them exist."""
    blocks = tl.cdiv(channels, CHANNELS)
    c = (tl.program_id(2) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    i = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    return tl.program_id(0).to(tl.int64), tl.program_id(2) // blocks, i, c, c < channels


@triton.jit
def conv_forward(
    x, weight, bias, order, out, length, channels, groups, x_batch, x_token,
    SILU: tl.constexpr, ORDERED: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    b, group, i, c, mask = place(length, channels, groups, TOKENS, CHANNELS)
    wide = group * channels + c
    order += group * length
    y = tl.zeros([TOKENS, CHANNELS], tl.float32) + tl.load(bias + wide, mask=mask, other=0.0)[None, :]
    for j in tl.static_range(WIDTH):
        tap = tl.load(weight + wide * WIDTH + WIDTH - 1 - j, mask=mask, other=0.0)
        y += read_tokens(x + b * x_batch, x_token, order, i - j, length, c, mask, ORDERED) * tap[None, :]
    if SILU:
        y *= sigmoid(y)
    t = tl.load(order + i, mask=i < length, other=0) if ORDERED else i
    at = (b * length + t[:, None]) * groups * channels + wide[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=(i < length)[:, None] & mask[None, :])


@triton.jit
def conv_backward(
    x, weight, bias, order, dout, dx, of_taps, length, channels, groups, batch, x_batch, x_token,
    SILU: tl.constexpr, ORDERED: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx (groups, batch, length, channels); of_taps (parts, width + 1, groups * channels) takes the gradients of the
    weight and, last, of the bias, a part for each TOKENS tokens.

    A token's gradient needs those of the outputs at itself and at the width - 1 tokens after it. A program walks along
    its tokens with all of them in registers, so that each is computed once; loads come first, as none passes a store.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    b, first, group = tl.program_id(0).to(tl.int64), tl.program_id(1) * TOKENS, tl.program_id(2) // blocks
    c = (tl.program_id(2) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    mask = c < channels
    wide = group * channels + c
    order += group * length
    x += b * x_batch
    dout += b * length * groups * channels + group * channels
    dx += (group * batch + b) * length * channels
    taps, tokens, gradients = (), (), ()
    for j in tl.static_range(WIDTH):
        taps = taps + (tl.load(weight + wide * WIDTH + WIDTH - 1 - j, mask=mask, other=0.0),)
    shift = tl.load(bias + wide, mask=mask, other=0.0)
    for k in tl.static_range(TOKENS + 2 * (WIDTH - 1)):
        tokens = tokens + (read_token(x, x_token, order, first + k - WIDTH + 1, length, c, mask, ORDERED),)
    for k in tl.static_range(TOKENS + WIDTH - 1):
        dy = read_token(dout, groups * channels, order, first + k, length, c, mask, ORDERED).to(tl.float32)
        if SILU:
            y = shift
            for j in tl.static_range(WIDTH):
                y += tokens[k + WIDTH - 1 - j].to(tl.float32) * taps[j]
            s = sigmoid(y)
            dy *= s + y * s * (1.0 - s)
        gradients = gradients + (dy,)
    for k in tl.static_range(TOKENS):
        total = tl.zeros([CHANNELS], tl.float32)
        for j in tl.static_range(WIDTH):
            total += gradients[k + j] * taps[j]
        i = first + k
        t = tl.load(order + tl.minimum(i, length - 1)) if ORDERED else i
        there = mask & (tl.full(c.shape, 0, tl.int32) + i < length)
        tl.store(dx + t * channels + c, total.to(dx.dtype.element_ty), mask=there)
    of_taps += (b * tl.num_programs(1) + tl.program_id(1)) * groups * channels * (WIDTH + 1)
    of_bias = tl.zeros([CHANNELS], tl.float32)
    for k in tl.static_range(TOKENS):
        of_bias += gradients[k]
    tl.store(of_taps + WIDTH * groups * channels + wide, of_bias, mask=mask)
    for j in tl.static_range(WIDTH):
        of_tap = tl.zeros([CHANNELS], tl.float32)
        for k in tl.static_range(TOKENS):
            of_tap += gradients[k] * tokens[k + WIDTH - 1 - j].to(tl.float32)
        tl.store(of_taps + (WIDTH - 1 - j) * groups * channels + wide, of_tap, mask=mask)
