"""The selective scan as one operator of torch.library, with a backend chosen at each call.

Compile, FSDP and activation checkpointing see two opaque operators, forward and backward, with shapes and gradients
registered. A backend is a module with `kept_shapes(inputs)`, `forward(inputs, keep)` and `backward(inputs, states,
ungated, dout)`; kept for the backward are states and, unless it is computed again, the output before the gate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.scan.backends import choose, load
from models.scan.inputs import ScanGradients, ScanInputs, check


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = "auto",
    order: Tensor | None = None,
) -> Tensor:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = <C_t, h_t> + D u_t;  returns y_t silu(z_t) in u's dtype.

    u, delta, z (batch, length, channels); A (channels, state), negative; D, delta_bias (channels); B, C (batch, length,
    state) or (batch, length, groups, state), with the channels split evenly and in order over the groups. delta_bias is
    added to delta, and softplus taken if `delta_softplus`. The state is float32 (float64 if any input is) whatever the
    dtype of the inputs. `order` (groups, length) gives the tokens in the order in which each group visits them; all
    tensors, the output too, stay in token order. Raises ValueError for shapes that do not fit and UserError for a
    backend that does not exist or cannot be used here. Mamba, arXiv 2312.00752, section 3.
    """
    if B.dim() == 3 and C.dim() == 3:
        B, C = B.unsqueeze(2), C.unsqueeze(2)
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order)
    check(inputs)
    name = choose("selective_scan", backend, u.device.type, inputs.accumulator)
    if name in ("reference", "cuda"):  # differentiated by autograd itself, and by mamba-ssm
        return load("selective_scan", name).selective_scan(inputs)
    keep = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    return torch.ops.armscale.selective_scan(*inputs, keep, name)[0]


INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, Tensor? order"
)
"""The fields of ScanInputs as torch.library writes them."""

torch.library.define("armscale::selective_scan", f"({INPUTS}, bool keep, str backend) -> (Tensor, Tensor, Tensor)")
torch.library.define(
    "armscale::selective_scan_backward",
    f"({INPUTS}, Tensor states, Tensor ungated, Tensor dout, str backend) -> Tensor[]",
)


@torch.library.impl("armscale::selective_scan", "default")
def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, keep, backend = arguments
    return load("selective_scan", backend).forward(ScanInputs(*fields), keep)


@torch.library.register_fake("armscale::selective_scan")
def _forward_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, keep, backend = arguments
    inputs = ScanInputs(*fields)
    states, ungated = load("selective_scan", backend).kept_shapes(inputs) if keep else ((0,), (0,))
    empty = inputs.u.new_empty
    return empty(inputs.u.shape), empty(states, dtype=inputs.accumulator), empty(ungated)


@torch.library.impl("armscale::selective_scan_backward", "default")
def _backward(*arguments: Any) -> list[Tensor]:
    *fields, states, ungated, dout, backend = arguments
    gradients = load("selective_scan", backend).backward(ScanInputs(*fields), states, ungated, dout)
    # An operator returns tensors alone: an empty one stands for the gradient of an input that was not given. Compiled
    # code relies on the strides that the fake gives.
    return [dout.new_empty(0) if gradient is None else gradient.contiguous() for gradient in gradients]


@torch.library.register_fake("armscale::selective_scan_backward")
def _backward_shapes(*arguments: Any) -> list[Tensor]:
    dout = arguments[-2]
    return [dout.new_empty(0) if x is None else x.new_empty(x.shape) for x in arguments[: len(ScanGradients._fields)]]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # else what was kept gets gradients too: zeros, a state's size for every chunk
    *tensors, ctx.delta_softplus, order, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, order, *output[1:])


def _differentiate(ctx: Any, dout: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, order, states, ungated = ctx.saved_tensors
    if dout is None:  # no gradient came
        return (None,) * (len(tensors) + 4)
    gradients = torch.ops.armscale.selective_scan_backward(
        *tensors, ctx.delta_softplus, order, states, ungated, dout, ctx.backend
    )
    wanted = [gradient if needed else None for gradient, needed in zip(gradients, ctx.needs_input_grad, strict=False)]
    return (*wanted, None, None, None, None)


torch.library.register_autograd("armscale::selective_scan", _differentiate, setup_context=_setup_context)
