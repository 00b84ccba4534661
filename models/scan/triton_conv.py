"""Backend `triton` of the causal convolution: a tile of tokens and channels a program, SiLU fused."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from models.scan.conv_inputs import ConvGradients, ConvInputs
from models.scan.triton_conv_kernels import conv_backward, conv_forward
from models.scan.triton_sums import add_up

TOKENS, CHANNELS = 16, 128
"""Of a tile of the forward; the tokens before it that the width reaches are read again, from the cache."""
BACKWARD_TOKENS, BACKWARD_CHANNELS = 16, 256
"""Of a program of the backward: the tokens that it walks along, and two channels a thread."""


def prepare(inputs: ConvInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x with contiguous channels, weight and bias in contiguous float32, order or a stand-in."""
    x = inputs.x if inputs.x.stride(2) == 1 else inputs.x.contiguous()
    weight = inputs.weight.float().contiguous()
    bias = weight.new_zeros(weight.shape[0]) if inputs.bias is None else inputs.bias.float().contiguous()
    return x, weight, bias, weight if inputs.order is None else inputs.order.to(torch.int32).contiguous()


def flags(inputs: ConvInputs) -> dict[str, int | bool]:
    return {
        "SILU": inputs.silu,
        "ORDERED": inputs.order is not None,
        "WIDTH": inputs.weight.shape[1],
        "enable_fp_fusion": True,
    }


def grid(inputs: ConvInputs, tokens: int, wide: int) -> tuple[int, int, int]:
    batch, length, channels = inputs.x.shape
    return batch, triton.cdiv(length, tokens), inputs.groups * triton.cdiv(channels, wide)


def forward(inputs: ConvInputs) -> Tensor:
    x, weight, bias, order = prepare(inputs)
    batch, length, channels = x.shape
    out = x.new_empty(batch, length, weight.shape[0])
    sizes = (length, channels, inputs.groups)
    conv_forward[grid(inputs, TOKENS, CHANNELS)](
        x, weight, bias, order, out, *sizes, *x.stride()[:2], **flags(inputs), TOKENS=TOKENS, CHANNELS=CHANNELS
    )
    return out


def backward(inputs: ConvInputs, dout: Tensor) -> ConvGradients:
    x, weight, bias, order = prepare(inputs)
    batch, length, channels = x.shape
    rows, width = weight.shape
    dx = x.new_empty(x.shape)
    # Groups share x: their gradients are added up in float32.
    of_groups = dx if inputs.groups == 1 else dx.new_empty(inputs.groups, *x.shape, dtype=torch.float32)
    programs = grid(inputs, BACKWARD_TOKENS, BACKWARD_CHANNELS)
    of_taps = weight.new_empty(batch * programs[1], width + 1, rows)
    sizes = (length, channels, inputs.groups, batch)
    conv_backward[programs](
        x, weight, bias, order, dout.contiguous(), of_groups, of_taps, *sizes, *x.stride()[:2], **flags(inputs),
        TOKENS=BACKWARD_TOKENS, CHANNELS=BACKWARD_CHANNELS,
    )  # fmt: skip
    dweight = torch.empty(rows, width, dtype=inputs.weight.dtype, device=x.device)
    dbias = torch.empty(rows, 1, dtype=bias.dtype if inputs.bias is None else inputs.bias.dtype, device=x.device)
    add_up(of_taps, (dweight, dbias), by_row=False)
    if inputs.groups > 1:
        add_up(of_groups, (dx,), by_row=True)
    return ConvGradients(dx, dweight, None if inputs.bias is None else dbias.view(rows))
