"""Backend `triton`: the scan on GPUs, one kernel forward and one backward.

The kernels take B and C in float32 and side by side (a twenty-fourth of the tokens at width 768), so that one load of a
warp brings both, and the state size padded to a power of two.
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


def side_by_side(inputs: ScanInputs, size: int) -> Tensor:
    """B and C in contiguous float32, (batch, length, groups, 2, size), the state padded to `size` by zeros."""
    batch, length, groups, state = inputs.B.shape
    matrices = torch.empty(batch, length, groups, 2, size, device=inputs.B.device)
    matrices[..., state:] = 0
    matrices[..., 0, :state], matrices[..., 1, :state] = inputs.B, inputs.C
    return matrices


def floats(vector: Tensor | None, channels: int, device: torch.device) -> Tensor:
    return torch.zeros(channels, device=device) if vector is None else vector.float().contiguous()


class Prepared:
    """The inputs as the kernels take them, with A transposed. Other tensors stand in for an absent z or order."""

    def __init__(self, inputs: ScanInputs) -> None:
        batch, length, channels = inputs.u.shape
        N, device = padded_state(inputs), inputs.u.device
        u, delta, A = rows(inputs.u), rows(inputs.delta), inputs.A.T.float().contiguous()
        z = u if inputs.z is None else rows(inputs.z)
        order = A if inputs.order is None else inputs.order.to(torch.int32).contiguous()
        D, bias = (floats(vector, channels, device) for vector in (inputs.D, inputs.delta_bias))
        self.tensors = (u, delta, A, side_by_side(inputs, N), D, z, bias, order)
        self.per_group, self.batch = channels // inputs.groups, batch
        self.sizes = (length, self.per_group, batch, inputs.A.shape[1], *(x.stride(0) for x in (u, delta, z)))
        self.constants = {
            "channels": channels,
            "u_token": u.stride(1),
            "delta_token": delta.stride(1),
            "z_token": z.stride(1),
            "groups": inputs.groups,
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
        kernel[self.constants["groups"] * blocks, self.batch](
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
    du, ddelta = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (inputs.u, inputs.delta))
    dz = du if inputs.z is None else torch.empty(inputs.z.shape, dtype=inputs.z.dtype, device=du.device)
    blocks = triton.cdiv(given.per_group, BACKWARD_BLOCK)
    of_matrices = states.new_empty(2, blocks, batch, length, inputs.groups, N)
    of_channels = states.new_empty(batch, N + 2, channels)
    outputs = (states, ungated, dout.contiguous(), du, ddelta, dz, of_matrices, of_channels)
    given.launch(scan_backward, outputs, BACKWARD_BLOCK, DTYPE=products(inputs))
    dB, dC = of_matrices.sum(1)[..., :state]
    of_channels = of_channels.sum(0)
    return ScanGradients(
        du,
        ddelta,
        of_channels[:state].T.to(inputs.A.dtype).contiguous(),
        dB.to(inputs.B.dtype).contiguous(),
        dC.to(inputs.C.dtype).contiguous(),
        None if inputs.D is None else of_channels[N].to(inputs.D.dtype, copy=True),
        None if inputs.z is None else dz,
        None if inputs.delta_bias is None else of_channels[N + 1].to(inputs.delta_bias.dtype, copy=True),
    )
