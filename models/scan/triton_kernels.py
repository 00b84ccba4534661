"""Triton kernels of the selective scan: one pass over the tokens with the state in registers.

A program is one batch element and one block of channels of one group; the state is a tile (state, channels).
Exponentials are powers of two; log2(e) is folded into A. An index table gives the order of each group's tokens.
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
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e), e = exp(-|x|): a polynomial is shorter than the device's logarithm and keeps
    its relative precision where e is tiny. It is that of numba_vectors.LOG1P."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    p = e * 0.0053648228078686825 - 0.030065787148623964
    p = p * e + 0.07920452876747865
    p = p * e - 0.13753801899579352
    p = p * e + 0.19153654797103623
    p = p * e - 0.2485716364798973
    p = p * e + 0.33321322617693616
    p = p * e - 0.49999647963555593
    p = p * e + 1.0
    return p * e + tl.maximum(x, 0.0)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def read_rates(A, d, state, n, mask, N: tl.constexpr):
    """log2(e) A as a tile (N, channels), zeros beyond `state`, read a state at a time.

    For a tile that no two-dimensional load or store touches, Triton keeps all states of a channel in one thread: sums
    over states need no exchange between threads.
    """
    tile = tl.zeros([N, d.shape[0]], tl.float32)
    for k in tl.static_range(N):
        rate = tl.load(A + d * state + k, mask=mask & (tl.full(d.shape, k, tl.int32) < state), other=0.0)
        tile = tl.where(n[:, None] == k, rate[None, :], tile)
    return tile * LOG2E


@triton.jit
def write_tile(pointer, stride, tile, n, mask, N: tl.constexpr):
    """The tile as rows `stride` apart, one state at a time, for the same reason."""
    for k in tl.static_range(N):
        row = tl.sum(tl.where(n[:, None] == k, tile, 0.0), axis=0)
        tl.store(pointer + k * stride, row, mask=mask)


@triton.jit
def scan_forward(
    u, delta, A, B, C, D, z, bias, order, out, states,
    length, channels, per_group, groups, batch, state,
    u_batch, u_token, delta_batch, delta_token, z_batch, z_token,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDERED: tl.constexpr, KEEP: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(per_group, BLOCK)
    b, group = tl.program_id(0).to(tl.int64), tl.program_id(1) // blocks
    inside = (tl.program_id(1) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = inside < per_group
    d = group * per_group + inside
    n = tl.arange(0, N)
    a = read_rates(A, d, state, n, mask, N)
    skip = tl.load(D + d, mask=mask, other=0.0)
    shift = tl.load(bias + d, mask=mask, other=0.0)
    u += b * u_batch + d
    delta += b * delta_batch + d
    z += b * z_batch + d
    out += b * length * channels + d
    B += (b * length * groups + group) * N + n
    C += (b * length * groups + group) * N + n
    order += group * length
    states += b * N * channels + d
    h = tl.zeros([N, BLOCK], tl.float32)
    for start in range(0, length, EVERY):
        # A chunk's loads before its stores: the compiler, which cannot tell their addresses apart, lets none pass.
        places, tokens, steps, gates, outputs = (), (), (), (), ()
        for k in tl.static_range(EVERY):
            i = tl.minimum(start + k, length - 1)
            t = tl.load(order + i) if ORDERED else i
            places = places + (t,)
            tokens = tokens + (tl.load(u + t * u_token, mask=mask, other=0.0),)
            steps = steps + (tl.load(delta + t * delta_token, mask=mask, other=0.0),)
            if GATED:
                gates = gates + (tl.load(z + t * z_token, mask=mask, other=0.0),)
        if KEEP:
            write_tile(states, channels, h, n, mask, N)
            states += batch * N * channels
        for k in tl.static_range(EVERY):
            t, x = places[k], tokens[k].to(tl.float32)
            dt = steps[k].to(tl.float32) + shift
            bt, ct = tl.load(B + t * groups * N), tl.load(C + t * groups * N)
            if SOFTPLUS:
                dt = softplus(dt)
            h = tl.exp2(dt[None, :] * a) * h + (dt * x)[None, :] * bt[:, None]
            y = tl.sum(h * ct[:, None], axis=0) + skip * x
            if GATED:
                gate = gates[k].to(tl.float32)
                y *= gate * sigmoid(gate)
            outputs = outputs + (y,)
        for k in tl.static_range(EVERY):
            there = mask & (tl.full([BLOCK], start + k, tl.int32) < length)
            tl.store(out + places[k] * channels, outputs[k].to(out.dtype.element_ty), mask=there)


@triton.jit
def scan_backward(
    u, delta, A, B, C, D, z, bias, order, states, dout, du, ddelta, dz, of_matrices, of_channels,
    length, channels, per_group, groups, batch, state,
    u_batch, u_token, delta_batch, delta_token, z_batch, z_token,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDERED: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """Chunks of EVERY tokens from the last to the first: forward again from the kept state, then back.

    Here A is (state, channels) and read as a tile, which lays four states and four channels into each thread of a warp:
    sums over states (for y, du and ddelta) and sums over channels (for dB and dC) then need the fewest exchanges.

    of_matrices (2, blocks, batch, length, groups, N) takes each block's part of dB and dC; of_channels (batch, N + 2,
    channels) each batch element's part of dA, dD and the gradient of the bias.
    """
    blocks = tl.cdiv(per_group, BLOCK)
    b, group, block = tl.program_id(0).to(tl.int64), tl.program_id(1) // blocks, tl.program_id(1) % blocks
    inside = block * BLOCK + tl.arange(0, BLOCK)
    mask = inside < per_group
    d = group * per_group + inside
    n = tl.arange(0, N)
    tile = n[:, None] * channels + d[None, :]
    a = tl.load(A + tile, mask=(n < state)[:, None] & mask[None, :], other=0.0) * LOG2E
    skip = tl.load(D + d, mask=mask, other=0.0)
    shift = tl.load(bias + d, mask=mask, other=0.0)
    u += b * u_batch + d
    delta += b * delta_batch + d
    z += b * z_batch + d
    dout += b * length * channels + d
    du += b * length * channels + d
    ddelta += b * length * channels + d
    dz += b * length * channels + d
    B += (b * length * groups + group) * N + n
    C += (b * length * groups + group) * N + n
    dB = of_matrices + ((block * batch + b) * length * groups + group) * N + n
    dC = dB + blocks.to(tl.int64) * batch * length * groups * N
    of_channels += b * (N + 2) * channels
    order += group * length
    g = tl.zeros([N, BLOCK], tl.float32)
    sum_A = tl.zeros([N, BLOCK], tl.float32)
    sum_D = tl.zeros([BLOCK], tl.float32)
    sum_bias = tl.zeros([BLOCK], tl.float32)
    for chunk in range(tl.cdiv(length, EVERY) - 1, -1, -1):
        # A chunk's loads before its stores, as in the forward.
        h = tl.load(states + (chunk * batch + b) * N * channels + tile, mask=mask[None, :], other=0.0)
        before, steps, tokens, adjoints, slopes = (h,), (), (), (), ()
        places, gates, gate_gradients, dCs = (), (), (), ()
        for k in tl.static_range(EVERY):
            i = tl.minimum(chunk * EVERY + k, length - 1)
            t = tl.load(order + i) if ORDERED else i
            there = mask & (tl.full([BLOCK], chunk * EVERY + k, tl.int32) < length)
            places = places + (t,)
            tokens = tokens + (tl.load(u + t * u_token, mask=there, other=0.0),)
            steps = steps + (tl.load(delta + t * delta_token, mask=there, other=0.0),)
            adjoints = adjoints + (tl.load(dout + t * channels, mask=there, other=0.0),)
            if GATED:
                gates = gates + (tl.load(z + t * z_token, mask=there, other=0.0),)
        raws, grads = steps, adjoints
        steps, adjoints = (), ()
        for k in tl.static_range(EVERY):
            there = mask & (tl.full([BLOCK], chunk * EVERY + k, tl.int32) < length)
            x, dy = tokens[k].to(tl.float32), grads[k].to(tl.float32)
            raw = raws[k].to(tl.float32) + shift
            bt = tl.load(B + places[k] * groups * N)
            ct = tl.load(C + places[k] * groups * N)
            dt, slope = raw, tl.full([BLOCK], 1.0, tl.float32)
            if SOFTPLUS:
                dt, slope = softplus(raw), sigmoid(raw)
            # Steps of 0 beyond the end. The way back takes dt itself, as its adjoints are 0 there: were it the same
            # value here, the compiler would keep the exponentials of a chunk, and spill them.
            h = tl.exp2(tl.where(there, dt, 0.0)[None, :] * a) * h + (dt * x)[None, :] * bt[:, None]
            if GATED:
                gate = gates[k].to(tl.float32)
                s = sigmoid(gate)
                y = tl.sum(h * ct[:, None], axis=0) + skip * x
                gate_gradients = gate_gradients + (dy * y * (s + gate * s * (1.0 - s)),)
                dy *= gate * s
            dCs = dCs + (tl.sum(h * dy[None, :], axis=1),)
            before, steps = before + (h,), steps + (dt,)
            adjoints, slopes = adjoints + (dy,), slopes + (slope,)
        for k in tl.static_range(EVERY):
            inside_chunk = chunk * EVERY + k
            tl.store(dC + places[k] * groups * N, dCs[k], mask=tl.full([N], inside_chunk, tl.int32) < length)
            if GATED:
                there = mask & (tl.full([BLOCK], inside_chunk, tl.int32) < length)
                tl.store(dz + places[k] * channels, gate_gradients[k].to(dz.dtype.element_ty), mask=there)
        for k in tl.static_range(EVERY - 1, -1, -1):
            i = tl.minimum(chunk * EVERY + k, length - 1)
            t = tl.load(order + i) if ORDERED else i  # again: kept, the chunk's places would spill
            there = mask & (tl.full([BLOCK], chunk * EVERY + k, tl.int32) < length)
            bt = tl.load(B + t * groups * N)
            ct = tl.load(C + t * groups * N)
            dt, x, dy = steps[k], tokens[k].to(tl.float32), adjoints[k]
            g += ct[:, None] * dy[None, :]
            tl.store(
                dB + t * groups * N,
                tl.sum(g * (dt * x)[None, :], axis=1),
                mask=tl.full([N], chunk * EVERY + k, tl.int32) < length,
            )
            ddrive = tl.sum(g * bt[:, None], axis=0)
            g *= tl.exp2(dt[None, :] * a)
            product = g * before[k]
            sum_A += product * dt[None, :]
            ddt = tl.sum(product * a, axis=0) * LN2 + ddrive * x
            draw = ddt * slopes[k]
            sum_bias += tl.where(there, draw, 0.0)
            sum_D += dy * x
            tl.store(du + t * channels, (ddrive * dt + dy * skip).to(du.dtype.element_ty), mask=there)
            tl.store(ddelta + t * channels, draw.to(ddelta.dtype.element_ty), mask=there)
    tl.store(of_channels + tile, sum_A, mask=mask[None, :])
    tl.store(of_channels + N * channels + d, sum_D, mask=mask)
    tl.store(of_channels + (N + 1) * channels + d, sum_bias, mask=mask)
