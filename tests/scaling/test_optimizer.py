"""AdamW's groups of the base model against hand-computed ones."""

import dataclasses

import pytest

from models.build import build_on_meta
from scaling.config import FINETUNE, PRETRAIN, RunConfig
from scaling.optimizer import parameter_groups


def groups_of(config: RunConfig) -> dict[str, tuple[float, float]]:
    """{parameter name: (weight decay, learning-rate scale)}."""
    objective = build_on_meta(config.encoder_config(), config.objective_config(1000))
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    return {
        names[id(parameter)].removeprefix("module."): (group["weight_decay"], group["lr_scale"])
        for group in parameter_groups(objective, config)
        for parameter in group["params"]
    }


def test_finetuning_base() -> None:
    """Scale 0.65^(13 - id): embedding 0, block i is i + 1, norm and head 13 (sheet, section 3)."""
    train = dataclasses.replace(FINETUNE, epochs=100, base_lr=5e-4)
    groups = groups_of(RunConfig(stage="finetune", strategy="supervised", train=train))
    assert groups["encoder.embedding.patch.weight"] == (0.05, pytest.approx(0.65**13))
    assert groups["encoder.embedding.pos_embed"] == (0.0, pytest.approx(0.65**13))
    assert groups["encoder.embedding.cls_token"] == (0.0, pytest.approx(0.65**13))
    assert groups["encoder.blocks.0.mixer.scan.A_log"] == (0.05, pytest.approx(0.65**12))
    assert groups["encoder.blocks.11.mixer.scan.D"] == (0.0, pytest.approx(0.65))
    assert groups["encoder.blocks.11.mixer.in_proj.weight"] == (0.05, pytest.approx(0.65))
    assert groups["encoder.blocks.5.mixer.conv.weight"] == (0.05, pytest.approx(0.65**7))
    assert groups["encoder.blocks.5.mixer.scan.dt_bias"][0] == 0.0
    assert groups["encoder.blocks.5.norm1.weight"][0] == 0.0
    assert groups["head.weight"] == (0.05, 1.0)
    assert groups["head.bias"] == (0.0, 1.0)
    assert len({scale for _, scale in groups.values()}) == 14


def test_pretraining_has_one_scale_and_decays_all_but_vectors() -> None:
    config = RunConfig(train=dataclasses.replace(PRETRAIN, epochs=1600, base_lr=1.5e-4))
    groups = groups_of(config)
    assert {scale for _, scale in groups.values()} == {1.0}
    assert groups["encoder.blocks.3.mixer.scan.A_log"][0] == 0.05
    assert groups["encoder.blocks.3.mixer.scan.D"][0] == 0.0
    assert groups["decoder.token"][0] == 0.05  # ar_token is decayed in the official code
