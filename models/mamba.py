"""The block of ARM (sheet 1.2 to 1.4): a Mamba-1 mixer with one or four scan directions, then a SwiGLU.

The directions' parameters are packed along their first dimension, direction after direction (rows forward, rows
reversed, columns forward, columns reversed), so that one convolution, one batched product and one scan serve them all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import CONV_WIDTH, STATE, EncoderConfig
from models.noise import drop_branch
from models.orders import gather_back, spread
from models.scan import causal_conv1d, selective_scan


class SelectiveScan(nn.Module):
    """The scan with the parameters that must reach it in fp32: a sharded engine gives it a policy of its own."""

    backend = "auto"  # a bench gives an instance another

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.empty(channels, STATE))
        self.D = nn.Parameter(torch.empty(channels))
        self.dt_bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor | None, order: Tensor | None) -> Tensor:
        """x, dt, z (batch, length, channels), B, C (batch, length, directions, state) to y of the shape of x."""
        return selective_scan(x, dt, -torch.exp(self.A_log), B, C, self.D, z, self.dt_bias, True, self.backend, order)


class CausalConv(nn.Module):
    """Depthwise causal convolution and silu: (batch, length, channels) to (batch, length, directions * channels)."""

    backend = "auto"  # a bench gives an instance another

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, CONV_WIDTH))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor, order: Tensor | None) -> Tensor:
        return causal_conv1d(x, self.weight, self.bias, activation="silu", backend=self.backend, order=order)


class DirectionLinear(nn.Module):
    """One linear map a direction, no bias: x (directions, tokens, inputs) to (directions, tokens, outputs)."""

    def __init__(self, directions: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.directions = directions
        self.weight = nn.Parameter(torch.empty(directions * outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight.view(self.directions, -1, self.weight.shape[1]).transpose(1, 2))


class Mixer(nn.Module):
    """Mamba-1 with expand 1. The directions share the projections in and out and are averaged before the latter.

    The official code gates every direction with its own ordering of z; the gate of a token is the same in all of them,
    so here it is applied once, to their mean.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, directions = config.width, config.scan_directions
        self.directions, self.dt_rank = directions, config.dt_rank
        self.in_proj = nn.Linear(width, 2 * width, bias=False)
        self.conv = CausalConv(directions * width)
        self.x_proj = DirectionLinear(directions, width, config.dt_rank + 2 * STATE)
        self.dt_proj = DirectionLinear(directions, config.dt_rank, width)
        self.scan = SelectiveScan(directions * width)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, u: Tensor, order: Tensor | None = None) -> Tensor:
        """(batch, length, width) to the same. `order` (directions, length), or (batch, directions, length) where it
        differs between samples; None for one direction."""
        x, z = self.in_proj(u).chunk(2, dim=-1)
        if self.directions == 1:
            return self.out_proj(self.scan_directions(x, z, None))
        assert order is not None and order.shape[-2] == self.directions
        if order.dim() == 3:
            y = gather_back(self.scan_directions(spread(x, order), None, None), order)
        else:
            y = self.scan_directions(x, None, order)
        y = y.unflatten(2, (self.directions, -1)).mean(2)
        return self.out_proj(y * F.silu(z))

    def scan_directions(self, x: Tensor, z: Tensor | None, order: Tensor | None) -> Tensor:
        """Convolution, projections and scan of all directions, (batch, length, directions * width)."""
        x = self.conv(x, order)
        batch, length, channels = x.shape
        apart = x.view(batch * length, self.directions, -1).transpose(0, 1)
        dt, B, C = self.x_proj(apart).split([self.dt_rank, STATE, STATE], dim=2)
        dt = self.dt_proj(dt).transpose(0, 1).reshape(batch, length, channels)
        B, C = (part.transpose(0, 1).reshape(batch, length, self.directions, STATE) for part in (B, C))
        return self.scan(x, dt, B, C, z, order)


class SwiGLU(nn.Module):
    """w3(silu(w1 x) * w2 x), with biases (Shazeer 2020); w1 and w2 are packed into w12.

    They are multiplied apart, as what the backward gives each of them then need not be put together. Where `rows` names
    the device, hidden values are filled up with zeros to a multiple of so many: cuBLAS has fast kernels for rows of 16
    bytes, and torch.compile fills long rows up to 128 bytes by itself, between which and a bias it then has to copy.
    """

    rows: Mapping[str, int] = {"cuda": 64}  # a bench gives an instance another

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        fill = -self.w3.in_features % self.rows.get(x.device.type, 1)
        weights = [_filled(weight, 0, 0, 0, fill) for weight in self.w12.weight.chunk(2)]
        biases = [_filled(bias, 0, fill) for bias in self.w12.bias.chunk(2)]
        gate, value = map(F.linear, (x, x), weights, biases)
        return F.linear(F.silu(gate) * value, _filled(self.w3.weight, 0, fill), self.w3.bias)


def _filled(weight: Tensor, *zeros: int) -> Tensor:
    """With zeros as F.pad counts them; itself where there are none to add."""
    return F.pad(weight, zeros) if any(zeros) else weight


class MambaBlock(nn.Module):
    """x + DropPath(Mixer(LN x)), then x + DropPath(SwiGLU(LN x))."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.mixer = Mixer(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(self, x: Tensor, order: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """x (batch, length, width); `order` as in Mixer; `keep` (batch, 2) for the two branches, as in drop_branch."""
        keep_mixer, keep_mlp = (None, None) if keep is None else keep.unbind(1)
        x = x + drop_branch(self.mixer(self.norm1(x), order), keep_mixer)
        return x + drop_branch(self.mlp(self.norm2(x)), keep_mlp)
