"""The causal depthwise convolution before the scan, as one operator of torch.library like the scan itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.scan.backends import choose, load
from models.scan.conv_inputs import ConvGradients, ConvInputs, check


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
    order: Tensor | None = None,
) -> Tensor:
    """y_t = act(bias + sum_j weight[:, width - 1 - j] x_{t-j}), with nothing before the first token; in x's dtype.

    x (batch, length, channels); weight (channels, width); bias (channels); activation None or "silu". A weight of
    (groups * channels, width) reads the same x once for each group and returns (batch, length, groups * channels);
    `order` (groups, length) gives the tokens in the order in which each group visits them, as in `selective_scan`.
    Raises ValueError for shapes that do not fit and UserError for a backend that cannot be used here.
    """
    if activation not in (None, "silu"):
        raise ValueError(f"causal_conv1d: activation is {activation!r}, expected None or 'silu'")
    inputs = ConvInputs(x, weight, bias, activation == "silu", order)
    check(inputs)
    name = choose("causal_conv1d", backend, x.device.type, inputs.accumulator)
    if name == "cuda":  # differentiated by causal-conv1d
        return load("causal_conv1d", name).causal_conv1d(inputs)
    return torch.ops.armscale.causal_conv1d(*inputs, name)


INPUTS = "Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor? order"
"""The fields of ConvInputs as torch.library writes them."""

torch.library.define("armscale::causal_conv1d", f"({INPUTS}, str backend) -> Tensor")
torch.library.define("armscale::causal_conv1d_backward", f"({INPUTS}, Tensor dout, str backend) -> Tensor[]")


@torch.library.impl("armscale::causal_conv1d", "default")
def _forward(*arguments: Any) -> Tensor:
    *fields, backend = arguments
    return load("causal_conv1d", backend).forward(ConvInputs(*fields))


@torch.library.register_fake("armscale::causal_conv1d")
def _forward_shape(*arguments: Any) -> Tensor:
    x, weight = arguments[:2]
    return x.new_empty((*x.shape[:2], weight.shape[0]))


@torch.library.impl("armscale::causal_conv1d_backward", "default")
def _backward(*arguments: Any) -> list[Tensor]:
    *fields, dout, backend = arguments
    gradients = load("causal_conv1d", backend).backward(ConvInputs(*fields), dout)
    return [dout.new_empty(0) if gradient is None else gradient for gradient in gradients]


@torch.library.register_fake("armscale::causal_conv1d_backward")
def _backward_shapes(*arguments: Any) -> list[Tensor]:
    dout = arguments[-2]
    return [dout.new_empty(0) if x is None else x.new_empty(x.shape) for x in arguments[: len(ConvGradients._fields)]]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu, order, ctx.backend = inputs
    ctx.save_for_backward(*tensors, order)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, order = ctx.saved_tensors
    gradients = torch.ops.armscale.causal_conv1d_backward(*tensors, ctx.silu, order, dout, ctx.backend)
    wanted = [gradient if needed else None for gradient, needed in zip(gradients, ctx.needs_input_grad, strict=False)]
    return (*wanted, None, None, None)


torch.library.register_autograd("armscale::causal_conv1d", _differentiate, setup_context=_setup_context)
