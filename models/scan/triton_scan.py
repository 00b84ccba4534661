"""Backend `triton`: the scan on GPUs, one kernel forward, and backward one and the two sums of its programs' parts.

The kernels take tokens, B and C as they lie in the projections that they are slices of; nothing is copied beforehand.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.scan.backends import INTERPRETED
from models.scan.inputs import ScanGradients, ScanInputs
from models.scan.triton_backward import scan_backward
from models.scan.triton_forward import scan_forward
from models.scan.triton_sums import add_up

EVERY = 4
"""Tokens between two kept states: as many states as the backward holds in registers without spilling."""
CHANNELS_A_THREAD = 2
"""Of the forward: they share what a thread reads of B and C. The backward's registers hold one channel."""
BACKWARD_BLOCK = 32
"""Channels of a program of the backward, one warp."""
LEAST_STATE = 16
"""To which a smaller state is padded: the tensor cores take no narrower tile."""


def padded_state(inputs: ScanInputs) -> int:
    return max(LEAST_STATE, triton.next_power_of_2(inputs.A.shape[1]))


def kept_shapes(inputs: ScanInputs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the states, (kept states, batch, padded state, channels), and of the output before the gate."""
    batch, length, channels = inputs.u.shape
    states = (triton.cdiv(length, EVERY), batch, padded_state(inputs), channels)
    return states, (0,) if inputs.z is None else (batch, length, channels)


def rows(tokens: Tensor) -> Tensor:
    """Tokens with contiguous channels; the kernels take any other strides."""
    return tokens if tokens.stride(2) == 1 else tokens.contiguous()


def matching(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """B and C with contiguous states, of one dtype and equal strides, as two slices of a projection have them."""
    if B.dtype == C.dtype and B.stride() == C.stride() and B.stride(3) == 1:
        return B, C
    return B.float().contiguous(), C.float().contiguous()


def floats(vector: Tensor | None, channels: int, device: torch.device) -> Tensor:
    return torch.zeros(channels, device=device) if vector is None else vector.float().contiguous()


class Prepared:
    """The inputs as the kernels take them. Other tensors stand in for an absent z or order."""

    def __init__(self, inputs: ScanInputs) -> None:
        batch, length, channels = inputs.u.shape
        N, device = padded_state(inputs), inputs.u.device
        u, delta, A = rows(inputs.u), rows(inputs.delta), inputs.A.float().contiguous()
        z = u if inputs.z is None else rows(inputs.z)
        order = A if inputs.order is None else inputs.order.to(torch.int32).contiguous()
        B, C = matching(inputs.B, inputs.C)
        D, bias = (floats(vector, channels, device) for vector in (inputs.D, inputs.delta_bias))
        self.tensors = (u, delta, A, B, C, D, z, bias, order)
        self.groups, self.per_group, self.batch = inputs.groups, channels // inputs.groups, batch
        self.sizes = (length, self.per_group, batch, *(x.stride(0) for x in (u, delta, z, B)), B.stride(2))
        self.constants = {
            "channels": channels,
            "state": A.shape[1],
            "u_token": u.stride(1),
            "delta_token": delta.stride(1),
            "z_token": z.stride(1),
            "matrix_token": B.stride(1),
            "SOFTPLUS": inputs.delta_softplus,
            "GATED": inputs.z is not None,
            "ORDERED": inputs.order is not None,
            "CUT": length % EVERY != 0,
            "N": N,
            "EVERY": EVERY,
            "enable_fp_fusion": True,
        }

    def launch(self, kernel: Any, outputs: tuple[Tensor, ...], block: int, **flags: Any) -> None:
        """One warp a program, a program a batch element and `block` channels of one group."""
        blocks = triton.cdiv(self.per_group, block)
        kernel[self.groups * blocks, self.batch](
            *self.tensors,
            *outputs,
            *self.sizes,
            **self.constants,
            **flags,
            WHOLE=self.per_group % block == 0,
            BLOCK=block,
            num_warps=1,
        )


def forward_block(per_group: int) -> int:
    """Channels of a program of the forward, one warp."""
    return min(32 * CHANNELS_A_THREAD, max(32, triton.next_power_of_2(per_group)))


def forward(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output (batch, length, channels) and, if `keep`, the states before every `EVERY`-th token and, with a gate,
    the output before it."""
    given = Prepared(inputs)
    states_shape, ungated_shape = kept_shapes(inputs) if keep else ((0,), (0,))
    out = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=inputs.u.device)
    states, ungated = out.new_empty(states_shape, dtype=torch.float32), out.new_empty(ungated_shape)
    given.launch(scan_forward, (out, states, ungated), forward_block(given.per_group), KEEP=keep)
    return out, states, ungated


def products(inputs: ScanInputs) -> Any:
    """What the tensor cores multiply to sum over channels: bfloat16 where the gradients of B and C are rounded to it,
    but in Triton's interpreter, which multiplies its bit patterns as integers."""
    rounded = inputs.B.dtype == inputs.C.dtype == torch.bfloat16
    return tl.bfloat16 if rounded and not INTERPRETED else tl.float32


def backward(inputs: ScanInputs, states: Tensor, ungated: Tensor, dout: Tensor) -> ScanGradients:
    """Gradients of all inputs, each in the dtype of its input, from what `forward` kept."""
    given = Prepared(inputs)
    batch, length, channels = inputs.u.shape
    N, state = padded_state(inputs), inputs.A.shape[1]

    def empty(like: Tensor | None, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32 if like is None else like.dtype, device=dout.device)

    du, ddelta = empty(inputs.u, *inputs.u.shape), empty(inputs.delta, *inputs.u.shape)
    dz = du if inputs.z is None else empty(inputs.z, *inputs.u.shape)
    dA, dD, dbias = empty(inputs.A, channels, N), empty(inputs.D, channels, 1), empty(inputs.delta_bias, channels, 1)
    dB, dC = (empty(x, batch, length, inputs.groups, N) for x in (inputs.B, inputs.C))
    of_matrices = empty(None, triton.cdiv(given.per_group, BACKWARD_BLOCK), batch, length, inputs.groups, 2, N)
    of_channels = empty(None, batch, N + 2, channels)
    outputs = (states, ungated, dout.contiguous(), du, ddelta, dz, of_matrices, of_channels)
    given.launch(scan_backward, outputs, BACKWARD_BLOCK, groups=inputs.groups, DTYPE=products(inputs))
    add_up(of_matrices, (dB, dC), by_row=True)
    add_up(of_channels, (dA, dD, dbias), by_row=False)
    dA, dB, dC = (gradient[..., :state].contiguous() for gradient in (dA, dB, dC))
    return ScanGradients(
        du,
        ddelta,
        dA,
        dB,
        dC,
        None if inputs.D is None else dD.view(channels),
        None if inputs.z is None else dz,
        None if inputs.delta_bias is None else dbias.view(channels),
    )
