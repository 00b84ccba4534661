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


@pytest.mark.parametrize(
    ("size", "depth", "width", "hidden", "layer_decay", "parameters"),
    [("base", 12, 768, 2048, 0.65, 85_031_656), ("large", 24, 1024, 2730, 0.75, 297_035_720)],
)
def test_every_element_is_in_its_group(
    size: str, depth: int, width: int, hidden: int, layer_decay: float, parameters: int
) -> None:
    """Elements of all 2 (depth + 2) groups at 224 px from the tensors of the sheet, 1.1 and 1.8, four directions."""
    train = dataclasses.replace(FINETUNE, epochs=100, base_lr=5e-4, layer_decay=layer_decay)
    config = RunConfig(stage="finetune", strategy="supervised", size=size, train=train)
    objective = build_on_meta(config.encoder_config(), config.objective_config(1000))
    found = {
        (group["weight_decay"], round(group["lr_scale"], 12)): sum(part.numel() for part in group["params"])
        for group in parameter_groups(objective, config)
    }
    rank = width // 16
    shared = 2 * width**2 + width**2 + 3 * hidden * width  # in_proj, out_proj, SwiGLU
    direction = 4 * width + (rank + 32) * width + width * rank + 16 * width  # conv, x_proj, dt_proj, A_log
    vectors = 4 * (3 * width) + 2 * 2 * width + 2 * hidden + width  # conv and dt bias, D; norms; SwiGLU's biases
    expected = {}
    for layer in range(depth + 2):
        scale = round(layer_decay ** (depth + 1 - layer), 12)
        expected[0.05, scale], expected[0.0, scale] = shared + 4 * direction, vectors
    first, last = round(layer_decay ** (depth + 1), 12), 1.0
    expected[0.05, first], expected[0.0, first] = 768 * width, width + 197 * width + width  # bias, positions, token
    expected[0.05, last], expected[0.0, last] = 1000 * width, 2 * width + 1000
    assert found == expected
    assert sum(found.values()) == parameters


def test_no_layer_scale_is_built() -> None:
    """Layer scale (gamma) is off in the official code: between branch and residual there is no parameter."""
    config = RunConfig(stage="finetune", strategy="supervised", train=dataclasses.replace(FINETUNE, epochs=1, lr=1.0))
    objective = build_on_meta(config.encoder_config(), config.objective_config(1000))
    block = {name.split("blocks.3.")[1] for name, _ in objective.named_parameters() if "blocks.3." in name}
    assert block == {
        "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "mixer.in_proj.weight", "mixer.conv.weight",
        "mixer.conv.bias", "mixer.x_proj.weight", "mixer.dt_proj.weight", "mixer.scan.A_log", "mixer.scan.D",
        "mixer.scan.dt_bias", "mixer.out_proj.weight", "mlp.w12.weight", "mlp.w12.bias", "mlp.w3.weight", "mlp.w3.bias",
    }  # fmt: skip


def test_pretraining_has_one_scale_and_decays_all_but_vectors() -> None:
    config = RunConfig(train=dataclasses.replace(PRETRAIN, epochs=1600, base_lr=1.5e-4))
    groups = groups_of(config)
    assert {scale for _, scale in groups.values()} == {1.0}
    assert groups["encoder.blocks.3.mixer.scan.A_log"][0] == 0.05
    assert groups["encoder.blocks.3.mixer.scan.D"][0] == 0.0
    assert groups["decoder.token"][0] == 0.05  # ar_token is decayed in the official code
