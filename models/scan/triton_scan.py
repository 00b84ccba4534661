"""Backend `triton`: the scan on GPUs, one kernel forward and one backward.

The kernels take float32 B and C (a forty-eighth of the tokens at width 768), so that a thread reads its states' values
as whole vectors, and the state size padded to a power of two.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from models.scan.inputs import ScanGradients, ScanInputs
from models.scan.triton_kernels import scan_backward, scan_forward

EVERY = 4
"""Tokens between two kept states: as many states as the backward holds in registers without spilling."""
CHANNELS_A_THREAD = 2
"""Of the forward: they share what a thread reads of B and C. The backward's registers hold one channel."""
BACKWARD_BLOCK = 32
"""Channels of a program of the backward, one warp."""
STAGES = 2
"""Chunks of kept states, B and C under way at once in the backward."""


def padded_state(inputs: ScanInputs) -> int:
    return triton.next_power_of_2(inputs.A.shape[1])


def states_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """(kept states, batch, padded state, channels)."""
    batch, length, channels = inputs.u.shape
    return triton.cdiv(length, EVERY), batch, padded_state(inputs), channels


def rows(tokens: Tensor) -> Tensor:
    """Tokens with contiguous channels; the kernels take any other strides."""
    return tokens if tokens.stride(2) == 1 else tokens.contiguous()


def filled(matrix: Tensor, size: int) -> Tensor:
    """B or C in contiguous float32 with the state padded to `size` by zeros."""
    missing = size - matrix.shape[-1]
    return (F.pad(matrix.float(), (0, missing)) if missing else matrix.float()).contiguous()


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
        self.tensors = (u, delta, A, filled(inputs.B, N), filled(inputs.C, N), D, z, bias, order)
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
            "N": N,
            "EVERY": EVERY,
            "enable_fp_fusion": True,
        }

    def launch(self, kernel: Any, outputs: tuple[Tensor, ...], block: int, **flags: int) -> None:
        """One warp a program, a program a batch element and `block` channels of one group."""
        blocks = triton.cdiv(self.per_group, block)
        kernel[self.batch, self.constants["groups"] * blocks](
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


def forward(inputs: ScanInputs, keep_states: bool) -> tuple[Tensor, Tensor]:
    """The output (batch, length, channels) and, if `keep_states`, the states before every `EVERY`-th token."""
    given = Prepared(inputs)
    kept, *shape = states_shape(inputs)
    out = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=inputs.u.device)
    states = out.new_empty([kept if keep_states else 0, *shape], dtype=torch.float32)
    given.launch(scan_forward, (out, states), forward_block(given.per_group), KEEP=keep_states)
    return out, states


def backward(inputs: ScanInputs, states: Tensor, dout: Tensor) -> ScanGradients:
    """Gradients of all inputs, each in the dtype of its input, from the states kept by `forward`."""
    given = Prepared(inputs)
    batch, length, channels = inputs.u.shape
    N, state = padded_state(inputs), inputs.A.shape[1]
    du, ddelta = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (inputs.u, inputs.delta))
    dz = du if inputs.z is None else torch.empty(inputs.z.shape, dtype=inputs.z.dtype, device=du.device)
    blocks = triton.cdiv(given.per_group, BACKWARD_BLOCK)
    of_matrices = states.new_empty(2, blocks, batch, length, inputs.groups, N)
    of_channels = states.new_empty(batch, N + 2, channels)
    outputs = (states, dout.contiguous(), du, ddelta, dz, of_matrices, of_channels)
    given.launch(scan_backward, outputs, BACKWARD_BLOCK, STAGES=STAGES)
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
