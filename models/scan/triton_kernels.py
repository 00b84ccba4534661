"""Triton kernels of the selective scan: one pass over the tokens with the state in registers.

A program is one warp with one batch element and one block of channels of one group; the state is a tile (state,
channels). Exponentials are powers of two: steps are counted in units of ln 2 (`s` below, dt = ln 2 * s), so that
exp(dt A) = 2^(s A). An index table gives the order of each group's tokens. `strides` are, in elements, those between
tokens of out (the channels), u, delta and z, and between rows of B: constants, as loads then take them as they are.
"""

# Triton's language in Python's syntax: its values have no Python types, and its tuples grow by addition alone.
# mypy: allow-untyped-defs, allow-incomplete-defs, no-warn-unreachable, disable-error-code="assignment,var-annotated"
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

from models.scan.triton_parts import (
    LN2,
    LOG2E,
    add_over_states,
    read_tokens,
    sigmoid,
    softplus_base_2,
    store_channel_sums,
    visits,
)


@triton.jit
def forward_chunk(
    h, channel, pointers, strides, start, length,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDERED: tl.constexpr, CUT: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """Writes the outputs of a chunk of EVERY tokens, and returns the state after it."""
    a, skip, shift, mask = channel
    u, delta, z, B, C, order, out = pointers
    places, masks = visits(order, start, length, mask, ORDERED, CUT, EVERY)
    tokens = read_tokens(u, strides[1], places, masks, EVERY)
    steps = read_tokens(delta, strides[2], places, masks, EVERY)
    gates = read_tokens(z, strides[3], places, masks, EVERY) if GATED else ()
    outputs = ()
    for k in tl.static_range(EVERY):
        x = tokens[k].to(tl.float32)
        s = steps[k].to(tl.float32) * LOG2E + shift
        if SOFTPLUS:
            s = softplus_base_2(s)
        bt, ct = tl.load(B + places[k] * strides[4]), tl.load(C + places[k] * strides[4])
        h = tl.exp2(s * a) * h + (s * LN2 * x) * bt[:, None]
        y = add_over_states(skip * x, h, ct[:, None])
        if GATED:
            gate = gates[k].to(tl.float32)
            y *= gate * sigmoid(gate)
        outputs = outputs + (y,)
    for k in tl.static_range(EVERY):
        tl.store(out + places[k] * strides[0], outputs[k].to(out.dtype.element_ty), mask=masks[k])
    return h


@triton.jit
def scan_forward(
    u, delta, A, B, C, D, z, bias, order, out, states,
    length, per_group, batch, state, u_batch, delta_batch, z_batch,
    channels: tl.constexpr, u_token: tl.constexpr, delta_token: tl.constexpr, z_token: tl.constexpr,
    groups: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDERED: tl.constexpr, WHOLE: tl.constexpr,
    KEEP: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """A is (state, channels). Keeps the state before every EVERY-th token in `states` (kept, batch, N, channels)."""
    blocks = tl.cdiv(per_group, BLOCK)
    b, group = tl.program_id(0).to(tl.int64), tl.program_id(1) // blocks
    inside = (tl.program_id(1) % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = tl.full(inside.shape, True, tl.int1) if WHOLE else inside < per_group
    # As many neighbours as a thread has channels: what Triton believes contiguous decides the layout of a load.
    d = tl.max_contiguous(group * per_group + inside, [1, BLOCK // 32])
    n = tl.arange(0, N)
    rows = n[:, None] * channels
    a = tl.load((A + d) + rows, mask=(n < state)[:, None] & mask, other=0.0)
    skip = tl.load(D + d, mask=mask, other=0.0)
    shift = tl.load(bias + d, mask=mask, other=0.0) * LOG2E
    matrix = (b * length * groups + group) * N + n
    pointers = (
        u + (b * u_batch + d), delta + (b * delta_batch + d), z + (b * z_batch + d), B + matrix, C + matrix,
        order + group * length, out + (b * length * channels + d),
    )  # fmt: skip
    channel = (a, skip, shift, mask)
    strides = (channels, u_token, delta_token, z_token, groups * N)
    states += b * N * channels + d
    h = tl.zeros([N, BLOCK], tl.float32)
    whole = length // EVERY * EVERY
    for start in range(0, whole, EVERY):
        if KEEP:
            tl.store(states + rows, h, mask=mask)
            states += batch * N * channels
        h = forward_chunk(h, channel, pointers, strides, start, length, SOFTPLUS, GATED, ORDERED, False, EVERY)
    if whole < length:
        if KEEP:
            tl.store(states + rows, h, mask=mask)
        forward_chunk(h, channel, pointers, strides, whole, length, SOFTPLUS, GATED, ORDERED, True, EVERY)


@triton.jit
def step_and_slope(delta, shift, SOFTPLUS: tl.constexpr):
    """s and d dt / d delta, which is 2^(x - log2(1 + 2^x)), the sigmoid of delta + bias."""
    x = delta.to(tl.float32) * LOG2E + shift
    s, slope = x, tl.full(x.shape, 1.0, tl.float32)
    if SOFTPLUS:
        s = softplus_base_2(x)
        slope = tl.exp2(x - s)
    return s, slope


@triton.jit
def backward_chunk(
    adjoint, sums, h, channel, pointers, strides, start, length,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDERED: tl.constexpr, CUT: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """From the state h before a chunk and the adjoint of the state after it: forward again, then back.

    Writes the chunk's gradients and returns the adjoint of h and the sums over tokens of dA, dD and of the bias's.
    Tokens beyond the end have no gradient of their output: they change nothing.
    """
    a, skip, shift, mask = channel
    u, delta, z, B, C, order, dout, du, ddelta, dz, dB, dC = pointers
    places, masks = visits(order, start, length, mask, ORDERED, CUT, EVERY)
    tokens = read_tokens(u, strides[1], places, masks, EVERY)
    raws = read_tokens(delta, strides[2], places, masks, EVERY)
    grads = read_tokens(dout, strides[0], places, masks, EVERY)
    gates = read_tokens(z, strides[3], places, masks, EVERY) if GATED else ()
    before, steps, slopes, dys, gate_gradients = (h,), (), (), (), ()
    for k in tl.static_range(EVERY):
        x, dy = tokens[k].to(tl.float32), grads[k].to(tl.float32)
        s, slope = step_and_slope(raws[k], shift, SOFTPLUS)
        dt = s * LN2
        bt = tl.load(B + places[k] * strides[4])
        h = tl.exp2(s * a) * h + (dt * x) * bt[:, None]
        if GATED:
            ct = tl.load(C + places[k] * strides[4])
            y = add_over_states(skip * x, h, ct[:, None])
            gate = gates[k].to(tl.float32)
            open_ = sigmoid(gate)
            passed = gate * open_
            gate_gradients = gate_gradients + (dy * y * (open_ + passed - passed * open_),)
            dy *= passed
        if k % 2 == 1:
            of_pair = before[k] * dys[k - 1], h * dy
            store_channel_sums(dC, strides[4], of_pair[0], of_pair[1], order, start + (k - 1), length, ORDERED, CUT)
        before, steps = before + (h,), steps + (dt,)
        slopes, dys = slopes + (slope,), dys + (dy,)
    if GATED:
        for k in tl.static_range(EVERY):
            tl.store(dz + places[k] * strides[0], gate_gradients[k].to(dz.dtype.element_ty), mask=masks[k])
    g = adjoint
    sum_A, sum_D, sum_bias = sums
    of_B = ()
    # Read again: kept, they would spill.
    places, masks = visits(order, start, length, mask, ORDERED, CUT, EVERY)
    tokens = read_tokens(u, strides[1], places, masks, EVERY)
    for k in tl.static_range(EVERY - 1, -1, -1):
        dt, x, dy = steps[k], tokens[k].to(tl.float32), dys[k]
        bt, ct = tl.load(B + places[k] * strides[4]), tl.load(C + places[k] * strides[4])
        g += ct[:, None] * dy
        of_B = of_B + (g * (dt * x),)
        if k % 2 == 0:
            of_pair = of_B[EVERY - 1 - k], of_B[EVERY - 2 - k]
            store_channel_sums(dB, strides[4], of_pair[0], of_pair[1], order, start + k, length, ORDERED, CUT)
        ddrive = add_over_states(tl.zeros(dt.shape, tl.float32), g, bt[:, None])
        # Another value of the same step: were it s, the compiler would keep the chunk's exponentials, and spill them.
        g *= tl.exp2(dt * LOG2E * a)
        product = g * before[k]
        sum_A += product * dt
        draw = add_over_states(ddrive * x, product, a) * slopes[k]
        sum_bias += draw
        sum_D += dy * x
        tl.store(du + places[k] * strides[0], (ddrive * dt + dy * skip).to(du.dtype.element_ty), mask=masks[k])
        tl.store(ddelta + places[k] * strides[0], draw.to(ddelta.dtype.element_ty), mask=masks[k])
    return g, (sum_A, sum_D, sum_bias)


@triton.jit
def scan_backward(
    u, delta, A, B, C, D, z, bias, order, states, dout, du, ddelta, dz, of_matrices, of_channels,
    length, per_group, batch, state, u_batch, delta_batch, z_batch,
    channels: tl.constexpr, u_token: tl.constexpr, delta_token: tl.constexpr, z_token: tl.constexpr,
    groups: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDERED: tl.constexpr, WHOLE: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, EVERY: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Chunks of EVERY tokens from the last to the first. A is (state, channels).

    of_matrices (2, blocks, batch, length, groups, N) takes each block's part of dB and dC; of_channels (batch, N + 2,
    channels) each batch element's part of dA, dD and the gradient of the bias.
    """
    blocks = tl.cdiv(per_group, BLOCK)
    b, group, block = tl.program_id(0).to(tl.int64), tl.program_id(1) // blocks, tl.program_id(1) % blocks
    inside = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = tl.full(inside.shape, True, tl.int1) if WHOLE else inside < per_group
    d = tl.max_contiguous(group * per_group + inside, [1, BLOCK // 32])  # as in the forward
    n = tl.arange(0, N)
    rows = n[:, None] * channels
    a = tl.load((A + d) + rows, mask=(n < state)[:, None] & mask, other=0.0)
    skip = tl.load(D + d, mask=mask, other=0.0)
    shift = tl.load(bias + d, mask=mask, other=0.0) * LOG2E
    matrix = (b * length * groups + group) * N + n
    dB = of_matrices + ((block * batch + b) * length * groups + group) * N
    dC = dB + blocks.to(tl.int64) * batch * length * groups * N
    at = b * length * channels + d
    pointers = (
        u + (b * u_batch + d), delta + (b * delta_batch + d), z + (b * z_batch + d), B + matrix, C + matrix,
        order + group * length, dout + at, du + at, ddelta + at, dz + at, dB, dC,
    )  # fmt: skip
    channel = (a, skip, shift, mask)
    strides = (channels, u_token, delta_token, z_token, groups * N)
    states += d
    g = tl.zeros([N, BLOCK], tl.float32)
    none = tl.zeros([1, BLOCK], tl.float32)
    sums = (g, none, none)
    whole = length // EVERY
    if whole * EVERY < length:
        h = tl.load(states + (whole * batch + b) * N * channels + rows, mask=mask, other=0.0)
        g, sums = backward_chunk(
            g, sums, h, channel, pointers, strides, whole * EVERY, length, SOFTPLUS, GATED, ORDERED, True, EVERY
        )
    for chunk in tl.range(whole - 1, -1, -1, num_stages=STAGES):
        h = tl.load(states + (chunk * batch + b) * N * channels + rows, mask=mask, other=0.0)
        g, sums = backward_chunk(
            g, sums, h, channel, pointers, strides, chunk * EVERY, length, SOFTPLUS, GATED, ORDERED, False, EVERY
        )
    of_channels += b * (N + 2) * channels + d
    tl.store(of_channels + rows, sums[0], mask=mask)
    tl.store(of_channels + N * channels, sums[1], mask=mask)
    tl.store(of_channels + (N + 1) * channels, sums[2], mask=mask)
