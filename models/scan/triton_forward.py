"""Triton kernel of the selective scan's forward: one pass over the tokens with the state in registers.

A program is one warp with one batch element and one block of channels of one group; neighbouring programs have
neighbouring blocks, which share the lines of memory that their tokens lie in. The state is a tile (state, channels).
Exponentials are powers of two: steps are counted in units of ln 2 (`s`, dt = ln 2 * s), so that exp(dt A) = 2^(s A).
An index table gives the order of each group's tokens. `strides` are, in elements, those between tokens of out (the
channels), u, delta, z and the matrices B and C: constants, as loads then take them as they are.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, no-warn-unreachable, disable-error-code="assignment,var-annotated"
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

from models.scan.triton_parts import (
    LN2,
    LOG2E,
    add_over_states,
    at_chunk,
    both,
    place_matrices,
    read_matrices,
    read_tokens,
    sigmoid,
    softplus_base_2,
    visits,
)


@triton.jit
def read_chunk(
    pointers, strides, start, length, mask,
    GATED: tl.constexpr, ORDERED: tl.constexpr, CUT: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """What EVERY tokens need: u, delta, z (u again if there is no gate), and B and C."""
    u, delta, z, matrix, present, order, _, _ = pointers
    places, masks = visits(order, start, length, mask, ORDERED, CUT, EVERY)
    tokens = read_tokens(u, strides[1], places, masks, start, ORDERED, EVERY)
    steps = read_tokens(delta, strides[2], places, masks, start, ORDERED, EVERY)
    gates = read_tokens(z, strides[3], places, masks, start, ORDERED, EVERY) if GATED else tokens
    matrices = read_matrices(matrix, strides[4], places, present, start, length, ORDERED, CUT, EVERY)
    return tokens, steps, gates, matrices


@triton.jit
def widened(given, EVERY: tl.constexpr):
    """What read_chunk has read, in float32: at the end of a turn of the loop, when it has long come. Carried into the
    next turn as it is stored, with two channels of bfloat16 in a register, it would first be taken apart."""
    tokens, steps, gates, matrices = given
    wide_tokens, wide_steps, wide_gates, wide_matrices = (), (), (), ()
    for k in tl.static_range(EVERY):
        wide_tokens = wide_tokens + (tokens[k].to(tl.float32),)
        wide_steps = wide_steps + (steps[k].to(tl.float32),)
        wide_gates = wide_gates + (gates[k].to(tl.float32),)
        wide_matrices = wide_matrices + (matrices[k].to(tl.float32),)
    return wide_tokens, wide_steps, wide_gates, wide_matrices


@triton.jit
def forward_chunk(
    h, given, channel, pointers, strides, start, length,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDERED: tl.constexpr, CUT: tl.constexpr, KEEP: tl.constexpr,
    EVERY: tl.constexpr,
):  # fmt: skip
    """Writes the outputs of a chunk of EVERY tokens (`given`, widened), and returns the state after it."""
    a, skip, shift, mask = channel
    _, _, _, _, _, order, out, ungated = pointers
    tokens, steps, gates, matrices = given
    places, masks = visits(order, start, length, mask, ORDERED, CUT, EVERY)
    sums, outputs = (), ()
    for k in tl.static_range(EVERY):
        x = tokens[k]
        s = steps[k] * LOG2E + shift
        if SOFTPLUS:
            s = softplus_base_2(s)
        bt, ct = both(matrices[k])
        h = tl.exp2(s * a) * h + (s * LN2 * x) * bt
        y = add_over_states(skip * x, h, ct)
        sums = sums + (y,)
        if GATED:
            y *= gates[k] * sigmoid(gates[k])
        outputs = outputs + (y,)
    out, ungated = at_chunk(out, strides[0], start, ORDERED), at_chunk(ungated, strides[0], start, ORDERED)
    for k in tl.static_range(EVERY):
        tl.store(out + places[k] * strides[0], outputs[k].to(out.dtype.element_ty), mask=masks[k])
        if KEEP and GATED:
            tl.store(ungated + places[k] * strides[0], sums[k].to(out.dtype.element_ty), mask=masks[k])
    return h


@triton.jit
def scan_forward(
    u, delta, A, B, C, D, z, bias, order, out, states, ungated,
    length, per_group, batch, u_batch, delta_batch, z_batch, matrix_batch, matrix_group,
    channels: tl.constexpr, state: tl.constexpr, u_token: tl.constexpr, delta_token: tl.constexpr,
    z_token: tl.constexpr, matrix_token: tl.constexpr,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDERED: tl.constexpr, WHOLE: tl.constexpr, CUT: tl.constexpr,
    KEEP: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """A (channels, state); B and C (batch, length, groups, state), of equal strides.

    If KEEP, the state before every EVERY-th token goes to `states` (kept, batch, N, channels), and with a gate the
    output before it to `ungated`, of the shape of out.
    """
    blocks = tl.cdiv(per_group, BLOCK)
    b, group = tl.program_id(1).to(tl.int64), tl.program_id(0) // blocks
    inside = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = tl.full(inside.shape, True, tl.int1) if WHOLE else inside < per_group
    # As many neighbours as a thread has channels: what Triton believes contiguous decides the layout of a load.
    d = tl.max_contiguous(group * per_group + inside, [1, BLOCK // 32])
    n = tl.arange(0, N)
    rows = n[:, None] * channels
    a = tl.load(A + d * state + n[:, None], mask=(n < state)[:, None] & mask, other=0.0)
    skip = tl.load(D + d, mask=mask, other=0.0)
    shift = tl.load(bias + d, mask=mask, other=0.0) * LOG2E
    at = b * length * channels + d
    of_group = b * matrix_batch + group * matrix_group
    matrix, present = place_matrices(B + of_group, C + of_group, state, N)
    pointers = (
        u + (b * u_batch + d), delta + (b * delta_batch + d), z + (b * z_batch + d),
        matrix, present, order + group * length, out + at, ungated + at,
    )  # fmt: skip
    channel = (a, skip, shift, mask)
    strides = (channels, u_token, delta_token, z_token, matrix_token)
    states += b * N * channels + d
    h = tl.zeros([N, BLOCK], tl.float32)
    whole = length // EVERY * EVERY  # unless CUT, that is the length
    given = widened(read_chunk(pointers, strides, 0, length, mask, GATED, ORDERED, CUT, EVERY), EVERY)
    for start in range(0, whole, EVERY):
        if KEEP:
            tl.store(states + rows, h, mask=mask)
            states += batch * N * channels
        # The next chunk is on its way while this one is computed; the last one is read again for nothing.
        ahead = tl.minimum(start + EVERY, whole - EVERY)
        following = read_chunk(pointers, strides, ahead, length, mask, GATED, ORDERED, False, EVERY)
        h = forward_chunk(
            h, given, channel, pointers, strides, start, length, SOFTPLUS, GATED, ORDERED, False, KEEP, EVERY
        )
        given = widened(following, EVERY)
    if CUT:
        if KEEP:
            tl.store(states + rows, h, mask=mask)
        given = widened(read_chunk(pointers, strides, whole, length, mask, GATED, ORDERED, True, EVERY), EVERY)
        forward_chunk(h, given, channel, pointers, strides, whole, length, SOFTPLUS, GATED, ORDERED, True, KEEP, EVERY)
