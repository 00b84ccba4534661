"""Backend `cuda`: mamba-ssm's selective_scan_fn, where it is installed. It brings its own autograd function."""

from __future__ import annotations

from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

from models.scan.cuda_order import reorder
from models.scan.inputs import ScanInputs


def selective_scan(inputs: ScanInputs) -> Tensor:
    """mamba-ssm wants (batch, channels, length), B and C (batch, groups, state, length), all of u's dtype, and A, D and
    the bias in float32."""
    u, delta, A, B, C, D, z, bias, softplus, order = inputs
    groups, dtype = inputs.groups, u.dtype

    def channels_first(tokens: Tensor) -> Tensor:
        return reorder(tokens, order, groups).to(dtype).transpose(1, 2).contiguous()

    def per_group(matrix: Tensor) -> Tensor:
        return channels_first(matrix.flatten(2)).unflatten(1, (groups, -1))

    out = selective_scan_fn(
        channels_first(u),
        channels_first(delta),
        A.float().contiguous(),
        per_group(B),
        per_group(C),
        None if D is None else D.float(),
        None if z is None else channels_first(z),
        None if bias is None else bias.float(),
        softplus,
    )
    return reorder(out.transpose(1, 2), None if order is None else order.argsort(dim=1), groups)
