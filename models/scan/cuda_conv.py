"""Backend `cuda` of the causal convolution: causal-conv1d's causal_conv1d_fn, with its own autograd function."""

from __future__ import annotations

from causal_conv1d import causal_conv1d_fn
from torch import Tensor

from models.scan.conv_inputs import ConvInputs
from models.scan.cuda_order import reorder


def causal_conv1d(inputs: ConvInputs) -> Tensor:
    """causal-conv1d wants (batch, channels, length) and widths 2 to 4."""
    groups, order = inputs.groups, inputs.order
    tokens = reorder(inputs.x.repeat(1, 1, groups), order, groups).transpose(1, 2)
    weight, bias = inputs.weight.to(inputs.x.dtype), None if inputs.bias is None else inputs.bias.to(inputs.x.dtype)
    out = causal_conv1d_fn(tokens, weight, bias, activation="silu" if inputs.silu else None)
    return reorder(out.transpose(1, 2), None if order is None else order.argsort(dim=1), groups)
