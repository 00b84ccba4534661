"""AdamW with the paper's groups: decay rules by parameter, learning-rate scale by layer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from models.groups import decays, layer_of, reads_width
from scaling.config import RunConfig


def parameter_groups(objective: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """Groups of equal (weight decay, layer scale); scale = layer_decay^(depth + 1 - layer) (sheet, section 3).

    The learning rate of a group is lr_scale times the schedule's, the floor included. Under muP the rate of matrices
    that read the encoder's width falls as 1 / width (arXiv 2203.03466, table 3, Adam); their decay grows as it, so that
    a step takes the same part of a weight at every width.
    """
    train, encoder = config.train, config.encoder_config()
    depth = encoder.depth
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = train.layer_decay ** (depth + 1 - layer_of(name, depth)) if config.classifies else 1.0
        decay = train.weight_decay if decays(name, parameter, stage=config.stage) else 0.0
        ratio = encoder.width_ratio if reads_width(name, parameter) else 1.0
        groups[decay * ratio, scale / ratio].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in sorted(groups.items())
    ]


def build_optimizer(objective: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW over the parameters of `objective`, fused; its learning rate is set before every step."""
    groups = parameter_groups(objective, config)
    return torch.optim.AdamW(groups, lr=0.0, betas=config.train.betas, fused=True)


def zero_moments(parameter: Tensor) -> dict[str, Tensor]:
    """What fused AdamW keeps of a parameter before its first update, laid out and spread over ranks like it."""
    weight = parameter.detach()
    return {
        "step": torch.zeros((), dtype=torch.float32, device=weight.device),
        "exp_avg": torch.zeros_like(weight),
        "exp_avg_sq": torch.zeros_like(weight),
    }


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
