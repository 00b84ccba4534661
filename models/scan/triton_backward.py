"""Triton kernel of the selective scan's backward: chunk by chunk from the end, forward again and then back.

Programs, layout, units and strides are those of the forward; a block has a channel a thread.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, no-warn-unreachable, disable-error-code="assignment,var-annotated"
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

from models.scan.triton_parts import (
    COLUMNS,
    LN2,
    LOG2E,
    add_over_states,
    as_columns,
    at_chunk,
    both,
    place_matrices,
    read_matrices,
    read_states,
    read_tokens,
    sigmoid,
    softplus_base_2,
    store_columns,
    sum_over_channels,
    visits,
)


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
def read_chunk(
    pointers, strides, start, length, mask,
    GATED: tl.constexpr, ORDERED: tl.constexpr, CUT: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """What EVERY tokens need: u, delta, dout, z and the output before the gate (u if there is none), and B and C."""
    u, delta, z, matrix, present, order, ungated, dout = pointers
    places, masks = visits(order, start, length, mask, ORDERED, CUT, EVERY)
    tokens = read_tokens(u, strides[1], places, masks, start, ORDERED, EVERY)
    raws = read_tokens(delta, strides[2], places, masks, start, ORDERED, EVERY)
    grads = read_tokens(dout, strides[0], places, masks, start, ORDERED, EVERY)
    gates, outputs = tokens, tokens
    if GATED:
        gates = read_tokens(z, strides[3], places, masks, start, ORDERED, EVERY)
        outputs = read_tokens(ungated, strides[0], places, masks, start, ORDERED, EVERY)
    matrices = read_matrices(matrix, strides[4], places, present, start, length, ORDERED, CUT, EVERY)
    return tokens, raws, grads, gates, outputs, matrices


@triton.jit
def through_gate(
    given, pointer, stride, places, masks, start, GATED: tl.constexpr, ORDERED: tl.constexpr, EVERY: tl.constexpr
):
    """The gradients of the outputs before the gate; writes those of the gate."""
    _, _, grads, gates, outputs, _ = given
    here = at_chunk(pointer, stride, start, ORDERED)
    dys = ()
    for k in tl.static_range(EVERY):
        dy = grads[k].to(tl.float32)
        if GATED:
            gate = gates[k].to(tl.float32)
            open_ = sigmoid(gate)
            passed = gate * open_
            dgate = dy * outputs[k].to(tl.float32) * (open_ + passed - passed * open_)
            tl.store(here + places[k] * stride, dgate.to(here.dtype.element_ty), mask=masks[k])
            dy *= passed
        dys = dys + (dy,)
    return dys


@triton.jit
def backward_chunk(
    adjoint, sums, h, given, ahead, channel, pointers, states, gradients, strides, start, length,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDERED: tl.constexpr, CUT: tl.constexpr, EVERY: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """From the state h before a chunk and the adjoint of the state after it to its gradients, which it writes.

    Returns the adjoint of h, the sums over tokens of dA, dD and of the bias's, and the state and what else is needed
    of the chunk that begins at token `ahead`. Tokens beyond the end have no gradient of their output: they change
    nothing.
    """
    a, skip, shift, mask = channel
    order = pointers[5]
    du, ddelta, dz, dB, dC = gradients
    N: tl.constexpr = a.shape[0]
    tokens, raws, _, _, _, matrices = given
    places, masks = visits(order, start, length, mask, ORDERED, CUT, EVERY)
    dys = through_gate(given, dz, strides[0], places, masks, start, GATED, ORDERED, EVERY)
    of_C, columns = tl.zeros([N, COLUMNS], tl.float32), as_columns(dys, EVERY, DTYPE)
    decayed, steps, slopes, drives = (), (), (), ()
    for k in tl.static_range(EVERY):
        s, slope = step_and_slope(raws[k], shift, SOFTPLUS)
        dt = s * LN2
        drive = dt * tokens[k].to(tl.float32)
        bt, _ = both(matrices[k])
        carried = tl.exp2(s * a) * h
        h = carried + drive * bt
        of_C = sum_over_channels(of_C, k, h, columns, DTYPE)
        decayed, steps = decayed + (carried,), steps + (dt,)
        slopes, drives = slopes + (slope,), drives + (drive,)
    store_columns(dC, strides[5], of_C, places, start, length, ORDERED, EVERY)

    g = adjoint
    sum_A, sum_D, sum_bias = sums
    of_B, columns = tl.zeros([N, COLUMNS], tl.float32), as_columns(drives, EVERY, DTYPE)
    du, ddelta = at_chunk(du, strides[0], start, ORDERED), at_chunk(ddelta, strides[0], start, ORDERED)
    following = given
    for k in tl.static_range(EVERY - 1, -1, -1):
        if k == 0:  # what is on its way needs registers: now that few states are left, there are some
            h = read_states(states, strides[0], mask, N)
            following = read_chunk(pointers, strides, ahead, length, mask, GATED, ORDERED, CUT, EVERY)
        dt, x, dy = steps[k], tokens[k].to(tl.float32), dys[k]
        bt, ct = both(matrices[k], 1)
        g += ct * dy
        of_B = sum_over_channels(of_B, k, g, columns, DTYPE)
        ddrive = add_over_states(tl.zeros(dt.shape, tl.float32), g, bt)
        product = g * decayed[k]
        # Another value of the same step: were it s, the compiler would keep the chunk's exponentials, and spill them.
        g *= tl.exp2(dt * LOG2E * a)
        sum_A += product * dt
        draw = add_over_states(ddrive * x, product, a) * slopes[k]
        sum_bias += draw
        sum_D += dy * x
        at = places[k] * strides[0]
        tl.store(du + at, (ddrive * dt + dy * skip).to(du.dtype.element_ty), mask=masks[k])
        tl.store(ddelta + at, draw.to(ddelta.dtype.element_ty), mask=masks[k])
    store_columns(dB, strides[5], of_B, places, start, length, ORDERED, EVERY)
    return g, (sum_A, sum_D, sum_bias), h, following


@triton.jit
def scan_backward(
    u, delta, A, B, C, D, z, bias, order, states, ungated, dout, du, ddelta, dz, of_matrices, of_channels,
    length, per_group, batch, u_batch, delta_batch, z_batch, matrix_batch, matrix_group,
    channels: tl.constexpr, state: tl.constexpr, u_token: tl.constexpr, delta_token: tl.constexpr,
    z_token: tl.constexpr, matrix_token: tl.constexpr, groups: tl.constexpr,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDERED: tl.constexpr, WHOLE: tl.constexpr, CUT: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, EVERY: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Inputs as in the forward, with the `states` and the output before the gate (`ungated`) that it kept.

    of_matrices (blocks, batch, length, groups, 2, N) takes each block's part of dB and dC, summed over channels in
    products of DTYPE; of_channels (batch, N + 2, channels) each batch element's part of dA, dD and of the bias's.
    """
    blocks = tl.cdiv(per_group, BLOCK)
    b, group, block = tl.program_id(1).to(tl.int64), tl.program_id(0) // blocks, tl.program_id(0) % blocks
    inside = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = tl.full(inside.shape, True, tl.int1) if WHOLE else inside < per_group
    d = tl.max_contiguous(group * per_group + inside, [1, BLOCK // 32])  # as in the forward
    n = tl.arange(0, N)
    a = tl.load(A + d * state + n[:, None], mask=(n < state)[:, None] & mask, other=0.0)
    skip = tl.load(D + d, mask=mask, other=0.0)
    shift = tl.load(bias + d, mask=mask, other=0.0) * LOG2E
    at = b * length * channels + d
    of_group = b * matrix_batch + group * matrix_group
    matrix, present = place_matrices(B + of_group, C + of_group, state, N)
    pointers = (
        u + (b * u_batch + d), delta + (b * delta_batch + d), z + (b * z_batch + d),
        matrix, present, order + group * length, ungated + at, dout + at,
    )  # fmt: skip
    of_matrices += ((block * batch + b) * length * groups + group) * (2 * N)
    gradients = (du + at, ddelta + at, dz + at, of_matrices, of_matrices + N)
    channel = (a, skip, shift, mask)
    strides = (channels, u_token, delta_token, z_token, matrix_token, groups * 2 * N)
    states += b * N * channels + d
    between = batch.to(tl.int64) * N * channels  # two kept states
    last = tl.cdiv(length, EVERY) - 1
    g = tl.zeros([N, BLOCK], tl.float32)
    none = tl.zeros([1, BLOCK], tl.float32)
    sums = (g, none, none)
    h = read_states(states + last * between, channels, mask, N)
    given = read_chunk(pointers, strides, last * EVERY, length, mask, GATED, ORDERED, CUT, EVERY)
    for chunk in range(last, -1, -1):
        ahead = tl.maximum(chunk - 1, 0)  # the first chunk is read again for nothing
        g, sums, h, given = backward_chunk(
            g, sums, h, given, ahead * EVERY, channel, pointers, states + ahead * between, gradients, strides,
            chunk * EVERY, length, SOFTPLUS, GATED, ORDERED, CUT, EVERY, DTYPE,
        )  # fmt: skip
    of_channels += b * (N + 2) * channels + d
    tl.store(of_channels + n[:, None] * channels, sums[0], mask=mask)
    tl.store(of_channels + N * channels, sums[1], mask=mask)
    tl.store(of_channels + (N + 1) * channels, sums[2], mask=mask)
