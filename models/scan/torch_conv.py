"""Backend `torch` of the causal convolution: shifted multiply-adds along contiguous channels, for any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.scan.conv_inputs import ConvGradients, ConvInputs


def pack(tokens: Tensor, inputs: ConvInputs) -> Tensor:
    """(batch, length, channels or groups * channels) -> (batch, length, 1 or groups, channels), each in its order."""
    grouped = tokens.unflatten(2, (-1, inputs.x.shape[2])).to(inputs.accumulator)
    if inputs.order is not None:
        grouped = grouped.expand(-1, -1, inputs.groups, -1)
        grouped = grouped[:, inputs.order.T, torch.arange(inputs.groups, device=tokens.device)]
    return grouped


def unpack(steps: Tensor, inputs: ConvInputs) -> Tensor:
    """(batch, length, groups, channels) in each group's order -> the same in the order of tokens."""
    if inputs.order is None:
        return steps
    inverse = inputs.order.argsort(dim=1)
    return steps[:, inverse.T, torch.arange(inputs.groups, device=steps.device)]


def taps(inputs: ConvInputs) -> Tensor:
    """(width, groups, channels): tap j multiplies the token j steps back."""
    weight = inputs.weight.to(inputs.accumulator).flip(1).T
    return weight.unflatten(1, (inputs.groups, -1)).contiguous()


def convolve(x: Tensor, inputs: ConvInputs) -> Tensor:
    """(batch, length, groups, channels), before the activation."""
    weight = taps(inputs)
    y = x * weight[0]
    if inputs.bias is not None:
        y += inputs.bias.to(y.dtype).view(inputs.groups, -1)
    for j in range(1, min(len(weight), x.shape[1])):
        y[:, j:].addcmul_(x[:, :-j], weight[j])
    return y


def forward(inputs: ConvInputs) -> Tensor:
    y = unpack(convolve(pack(inputs.x, inputs), inputs), inputs).flatten(2)
    if inputs.silu:
        y = F.silu(y)
    return y.to(inputs.x.dtype).contiguous()


def backward(inputs: ConvInputs, dout: Tensor) -> ConvGradients:
    x, dy, weight = pack(inputs.x, inputs), pack(dout, inputs), taps(inputs)
    if inputs.silu:
        y = convolve(x, inputs)
        sigmoid = torch.sigmoid(y)
        dy = dy * sigmoid * (1 + y * (1 - sigmoid))
    dx, dweight = dy * weight[0], torch.zeros_like(weight)
    dweight[0] = (dy * x).sum((0, 1))
    for j in range(1, min(len(weight), x.shape[1])):
        dx[:, :-j].addcmul_(dy[:, j:], weight[j])
        dweight[j] = (dy[:, j:] * x[:, :-j]).sum((0, 1))
    dbias = None if inputs.bias is None else dy.sum((0, 1)).flatten().to(inputs.bias.dtype)
    return ConvGradients(
        unpack(dx, inputs).sum(2).to(inputs.x.dtype).contiguous(),
        dweight.flatten(1).T.flip(1).to(inputs.weight.dtype).contiguous(),
        dbias,
    )
