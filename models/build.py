"""From configs to objectives: a plain dict of builders."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from models.arm import ARM
from models.classifier import Classifier
from models.config import ARConfig, EncoderConfig, MAEConfig, ObjectiveConfig, SupervisedConfig, check
from models.initialize import initialize
from models.mae import MAE
from models.objectives import Objective, cross_entropy, prediction_loss

BUILDERS: dict[type, Callable[[EncoderConfig, Any], Objective]] = {
    ARConfig: lambda encoder, config: Objective(ARM(encoder, config), prediction_loss),
    MAEConfig: lambda encoder, config: Objective(MAE(encoder, config), prediction_loss),
    SupervisedConfig: lambda encoder, config: Objective(Classifier(encoder, config), cross_entropy),
}


def build_on_meta(encoder: EncoderConfig, objective: ObjectiveConfig) -> Objective:
    """The objective without memory: shapes and names alone. Raises UserError for configs that cannot be built."""
    check(encoder, objective)
    with torch.device("meta"):
        return BUILDERS[type(objective)](encoder, objective)


def build_objective(
    encoder: EncoderConfig, objective: ObjectiveConfig, seed: int = 0, device: torch.device | str | None = None
) -> Objective:
    """The objective with its initial values, a function of the configs and `seed` alone, on `device` (CPU by default).

    On "meta" it has no memory; shard it, `to_empty` it and call `models.initialize.initialize` for the same values.
    """
    module = build_on_meta(encoder, objective)
    device = torch.device(device or "cpu")
    if device.type != "meta":
        module.to_empty(device=device)
        initialize(module, seed)
    return module


def count_parameters(module: nn.Module) -> tuple[int, int, int]:
    """(all, trained, of the encoder) parameters.

    All count the fixed position tables, as the official code's number does; the encoder is the patch embedding and the
    blocks (sheet 1.1).
    """
    trained = {name: parameter.numel() for name, parameter in module.named_parameters() if parameter.requires_grad}
    fixed = sum(buffer.numel() for name, buffer in module.named_buffers() if name.endswith("pos_embed"))
    frozen = sum(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad)
    encoder = sum(
        count for name, count in trained.items() if "encoder.embedding.patch." in name or "encoder.blocks." in name
    )
    return sum(trained.values()) + fixed + frozen, sum(trained.values()), encoder


@lru_cache(maxsize=1024)
def parameter_counts(encoder: EncoderConfig, objective: ObjectiveConfig) -> tuple[int, int, int]:
    """`count_parameters` of what the configs describe, without its memory."""
    return count_parameters(build_on_meta(encoder, objective))
