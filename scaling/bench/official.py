"""The baseline `official-loop`: a straightforward reproduction of the official training loop, on our model.

As the reference scripts do it (github.com/OliverRensu/ARM): eager; autocast with a gradient scaler although bf16 needs
none, so that every gradient is read and written once more; the loss read back every step; torch's AdamW as it comes,
not fused; torch's clipping, or where nothing is clipped the norm alone, parameter by parameter; the average of the
weights tensor by tensor; a wait for the device at the end of every step. On GPUs the mixers run mamba-ssm's kernels
where they are installed, on CPUs the reference scan; that no copy of the weights and no graph is shared with our
trainer keeps the comparison fair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.build import build_objective
from models.mamba import Mixer, SwiGLU
from scaling.bench.trainer import CLASSES, resident_inputs, use_backend
from scaling.config import RunConfig
from scaling.optimizer import parameter_groups, set_learning_rate


class OfficialLoop:
    """One rank. `kernels` says which scan runs: mamba-ssm, reference, or auto on a GPU without mamba-ssm."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.objective = build_objective(config.encoder_config(), config.objective_config(CLASSES), device=device)
        self.kernels = _official_mixers(self.objective, device)
        groups = parameter_groups(self.objective, config)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.train.betas)
        self.scaler = torch.amp.GradScaler(device.type)
        averaged = self.objective.state_dict() if config.train.ema else {}
        self.average = {name: value.clone() for name, value in averaged.items()}
        self.inputs = resident_inputs(config, device)
        self.accumulation = config.train.global_batch // len(self.inputs.images)

    def step(self) -> float:
        """The loss, on the host."""
        inputs, bf16, seen = self.inputs, self.config.precision == "bf16", 0.0
        for _ in range(self.accumulation):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                loss, _ = self.objective(inputs.images, inputs.labels, inputs.noise)
            seen = loss.item()
            assert math.isfinite(seen)
            self.scaler.scale(loss / self.accumulation).backward()
        set_learning_rate(self.optimizer, 1e-6)
        self.scaler.unscale_(self.optimizer)
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self._move_average()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return seen

    @torch.no_grad()
    def _clip(self) -> None:
        """Where nothing is clipped the scripts take the norm all the same, for their log."""
        if self.config.train.clip:
            torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.train.clip)
        else:
            gradients = [parameter.grad for parameter in self.objective.parameters() if parameter.grad is not None]
            torch.stack([gradient.norm() for gradient in gradients]).norm()

    @torch.no_grad()
    def _move_average(self, decay: float = 0.99992) -> None:
        """As timm's ModelEma: every tensor of the state in a Python loop."""
        weights = self.objective.state_dict() if self.average else {}
        for name, value in weights.items():
            average = self.average[name]
            average.copy_(average * decay + value * (1.0 - decay) if value.is_floating_point() else value)


def _official_mixers(objective: nn.Module, device: torch.device) -> str:
    """Puts the official code's kernels under the mixers; returns the scan's name."""
    if device.type == "cpu":
        use_backend(objective, "reference")
        return "reference"
    if find_spec("mamba_ssm") is None or find_spec("causal_conv1d") is None:
        return "auto"
    for module in objective.modules():
        if isinstance(module, Mixer):
            module.forward = mamba_ssm_mixer(module)  # type: ignore[method-assign]
        elif isinstance(module, SwiGLU):
            module.rows = {}  # the hidden width as it is
    return "mamba-ssm"


def mamba_ssm_mixer(mixer: Mixer) -> Callable[..., Tensor]:
    """The mixer as the official code computes it, channels before length: one direction by mamba-ssm's fused inner
    function, with the projection out inside; four directions one after the other on reordered copies of x and z, each
    gated by itself (sheet 1.4)."""
    from causal_conv1d import causal_conv1d_fn
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn

    kernels = (causal_conv1d_fn, mamba_inner_fn, selective_scan_fn)
    return partial(_mamba_ssm_forward, mixer, kernels)


def _mamba_ssm_forward(mixer: Mixer, kernels: tuple[Any, Any, Any], u: Tensor, order: Tensor | None = None) -> Tensor:
    """u (batch, length, width) to the same."""
    _, inner, _ = kernels
    xz = mixer.in_proj(u).transpose(1, 2).contiguous()  # (batch, 2 width, length)
    A = -torch.exp(mixer.scan.A_log.float())
    if mixer.directions == 1:
        return inner(
            xz, mixer.conv.weight.unsqueeze(1), mixer.conv.bias, mixer.x_proj.weight, mixer.dt_proj.weight,
            mixer.out_proj.weight, None, A, None, None, mixer.scan.D, delta_bias=mixer.scan.dt_bias,
            delta_softplus=True,
        )  # fmt: skip
    assert order is not None and order.dim() == 2, "one order for the batch: the official code has no other"
    total: Tensor | None = None
    for direction, visits in enumerate(order):
        y = _one_direction(mixer, kernels, xz[:, :, visits], A, direction)[:, :, visits.argsort()]
        total = y if total is None else total + y
    assert total is not None
    return mixer.out_proj((total / mixer.directions).transpose(1, 2))


def _one_direction(mixer: Mixer, kernels: tuple[Any, Any, Any], xz: Tensor, A: Tensor, direction: int) -> Tensor:
    """xz (batch, 2 width, length) in the order of this direction to y (batch, width, length)."""
    conv, _, scan = kernels

    def own(packed: Tensor) -> Tensor:
        return packed.chunk(mixer.directions)[direction]

    x, z = xz.chunk(2, dim=1)
    x = conv(x, own(mixer.conv.weight).to(x.dtype), own(mixer.conv.bias).to(x.dtype), activation="silu")
    projected = F.linear(x.transpose(1, 2), own(mixer.x_proj.weight))
    low, B, C = projected.split([mixer.dt_rank, A.shape[1], A.shape[1]], dim=2)
    dt = F.linear(low, own(mixer.dt_proj.weight)).transpose(1, 2).contiguous()
    B, C = B.transpose(1, 2).contiguous(), C.transpose(1, 2).contiguous()
    D, bias = own(mixer.scan.D).float(), own(mixer.scan.dt_bias).float()
    return scan(x, dt.to(x.dtype), own(A), B.to(x.dtype), C.to(x.dtype), D, z.contiguous(), bias, True)
