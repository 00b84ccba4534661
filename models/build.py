"""From configs to objectives: a plain dict of builders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
