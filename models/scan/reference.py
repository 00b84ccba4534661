"""The selective scan as it is defined: a loop over tokens that autograd differentiates. The oracle of the tests.

Mamba (Gu and Dao 2023, arXiv 2312.00752), equations 2 and 4 with the simplified discretisation of its code:
    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = <C_t, h_t> + D u_t        out_t = y_t silu(z_t)
Written as mamba-ssm's own reference is: decays and drives of all tokens first, then the loop. Autograd keeps every
state, and the gradient of each token's slice is a tensor over all tokens: quadratic in length, so never train with it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.scan.inputs import ScanInputs


def selective_scan(inputs: ScanInputs) -> Tensor:
    """(batch, length, channels) in the dtype of u; computed in float64 if any input is, else in float32."""
    batch, length, channels = inputs.u.shape
    dtype = inputs.accumulator
    per_group = channels // inputs.groups
    u, delta, A, B, C = (value.to(dtype) for value in inputs[:5])
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias.to(dtype)
    if inputs.delta_softplus:
        delta = F.softplus(delta)

    parts = []
    for group in range(inputs.groups):
        own = slice(group * per_group, (group + 1) * per_group)
        decay = torch.exp(delta[:, :, own, None] * A[own])  # (batch, length, channels of the group, state)
        drive = (delta * u)[:, :, own, None] * B[:, :, group, None]
        visits = range(length) if inputs.order is None else inputs.order[group].tolist()
        h = u.new_zeros(batch, per_group, A.shape[1])
        y: dict[int, Tensor] = {}
        for t in visits:
            h = decay[:, t] * h + drive[:, t]
            y[t] = (h * C[:, t, group, None]).sum(-1)
        parts.append(torch.stack([y[t] for t in range(length)], dim=1))

    out = torch.cat(parts, dim=2)
    if inputs.D is not None:
        out = out + inputs.D.to(dtype) * u
    if inputs.z is not None:
        out = out * F.silu(inputs.z.to(dtype))
    return out.to(inputs.u.dtype)
