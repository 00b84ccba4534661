"""A baseline for `armscale bench scan`: the scan as a work-efficient parallel prefix sum over the tokens.

Blelloch, "Prefix sums and their applications" (1990): pairs (a, h) combine as (a2 a1, a2 h1 + h2), up a tree and down
again in 2 log2(length) passes, each over whole slabs of states. This is how public PyTorch code for Mamba without CUDA
kernels avoids the loop over tokens. It materialises all states, so it is a baseline only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.scan.inputs import ScanInputs


def _every(x: Tensor, first: int, stride: int, backwards: bool) -> Tensor:
    """x[first], x[first + stride], ... along dimension 0; backwards, first and stride count from the end."""
    if not backwards:
        return x[first::stride]
    last = x.shape[0] - 1 - first
    return x[last % stride : last + 1 : stride] if last >= 0 else x[:0]


def _combine(a: Tensor, h: Tensor, into: tuple[int, int], source: tuple[int, int], backwards: bool) -> None:
    target_a, target_h = _every(a, *into, backwards), _every(h, *into, backwards)
    count = target_a.shape[0]
    if count == 0:
        return
    own = slice(-count, None) if backwards else slice(count)
    target_h.addcmul_(target_a, _every(h, *source, backwards)[own])
    target_a.mul_(_every(a, *source, backwards)[own])


def prefix_sum_(a: Tensor, h: Tensor, backwards: bool = False) -> None:
    """In place along dimension 0: h_t <- a_t h_{t-1} + h_t (h_{t+1} if `backwards`); a is spent."""
    length, step = h.shape[0], 1
    while 2 * step <= length:
        _combine(a, h, (2 * step - 1, 2 * step), (step - 1, 2 * step), backwards)
        step *= 2
    while step >= 1:
        _combine(a, h, (3 * step - 1, 2 * step), (2 * step - 1, 2 * step), backwards)
        step //= 2


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor) -> Tensor:
        h = drive.clone()
        prefix_sum_(decay.clone(), h)
        ctx.save_for_backward(decay, h)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        decay, h = ctx.saved_tensors
        following = torch.cat([decay[1:], torch.zeros_like(decay[:1])])
        g = gradients[0].clone()
        prefix_sum_(following, g, backwards=True)
        ddecay = torch.zeros_like(g)
        torch.mul(g[1:], h[:-1], out=ddecay[1:])
        return ddecay, g


def selective_scan(inputs: ScanInputs) -> Tensor:
    """The scan of `models.scan.selective_scan` for one group in the order of the tokens."""
    assert inputs.groups == 1
    assert inputs.order is None
    u, delta = inputs.u.transpose(0, 1), inputs.delta.transpose(0, 1)  # (length, batch, channels): slabs are contiguous
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias
    if inputs.delta_softplus:
        delta = F.softplus(delta)
    B, C = inputs.B.squeeze(2).transpose(0, 1), inputs.C.squeeze(2).transpose(0, 1)
    decay = torch.exp(delta.unsqueeze(2) * inputs.A.T)  # (length, batch, state, channels)
    h = _Recurrence.apply(decay, B.unsqueeze(3) * (delta * u).unsqueeze(2))
    y = (C.unsqueeze(2) @ h).squeeze(2)
    if inputs.D is not None:
        y = y + inputs.D * u
    y = y.transpose(0, 1)
    return y if inputs.z is None else y * F.silu(inputs.z)
