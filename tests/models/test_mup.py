"""Width-aware scaling (muP): the coordinate check of Yang et al. 2021 (arXiv 2203.03466, figure 5), and its groups."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from models.build import build_objective
from models.config import ENCODERS, ARConfig, EncoderConfig, ObjectiveConfig, SupervisedConfig
from models.groups import reads_width
from models.noise import Noise
from scaling.config import FINETUNE, ModelConfig, RunConfig
from scaling.optimizer import build_optimizer, parameter_groups, set_learning_rate

WIDTHS = (64, 128, 256, 512)
BASE, CLASSES, RATE = 64, 10, 1e-2


def config_of(kind: str, width: int, parametrisation: str) -> RunConfig:
    train = dataclasses.replace(
        FINETUNE, images=64, global_batch=16, image_size=16, lr=RATE, drop_path=0.0, layer_decay=1.0, weight_decay=0.0,
        scan_directions=1, class_token=False,
    )  # fmt: skip
    model = ModelConfig(depth=2, width=width, patch_size=4, parametrisation=parametrisation, base_width=BASE)
    return RunConfig(stage="finetune", strategy="scratch", encoder=kind, model=model, train=train)


def changes(kind: str, width: int, parametrisation: str) -> tuple[float, float]:
    """Root mean square by which three AdamW steps on one batch change the encoder's tokens and the logits."""
    config = config_of(kind, width, parametrisation)
    objective = build_objective(config.encoder_config(), config.objective_config(CLASSES))
    optimizer = build_optimizer(objective, config)
    set_learning_rate(optimizer, RATE)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 16, 16, generator=generator)
    labels = torch.randint(0, CLASSES, (16,), generator=generator)
    module = objective.get_submodule("module")

    @torch.no_grad()
    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        encoder = module.get_submodule("encoder")
        return encoder(encoder.get_submodule("embedding")(images))[0], module(images)

    before = outputs()
    for _ in range(3):
        loss, _ = objective(images, labels, Noise())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, logits = ((new - old).square().mean().sqrt().item() for new, old in zip(outputs(), before, strict=True))
    return tokens, logits


@pytest.mark.parametrize("kind", ENCODERS)
def test_coordinate_check(kind: str) -> None:
    """Over eightfold width the steps' effect stays where it is under muP, and grows several times without it."""
    standard = [changes(kind, width, "standard") for width in WIDTHS]
    mup = [changes(kind, width, "mup") for width in WIDTHS]
    assert mup[0] == standard[0]  # at the base width they are one
    for part in (0, 1):
        flat = [change[part] for change in mup]
        grown = [change[part] for change in standard]
        assert max(flat) / min(flat) < 1.5
        assert all(after > 1.2 * before for before, after in pairwise(grown))
        assert grown[-1] / grown[0] > 4


def shapes(config: EncoderConfig, objective: ObjectiveConfig) -> dict[str, torch.Tensor]:
    return dict(build_objective(config, objective, device="meta").named_parameters())


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("objective", [ARConfig(cluster_side=2, decoder_width=64), SupervisedConfig(classes=CLASSES)])
def test_which_matrices_read_the_width(kind: str, objective: ObjectiveConfig) -> None:
    """Exactly those whose number of inputs differs between two widths; positions, a table, read nothing."""
    config = EncoderConfig(encoder=kind, depth=2, width=256, image_size=16, patch_size=4, positions="learned")
    wide, narrow = shapes(config, objective), shapes(dataclasses.replace(config, width=128), objective)
    growing = {name for name in wide if wide[name].dim() == 2 and wide[name].shape[1] != narrow[name].shape[1]}
    assert {name for name, parameter in wide.items() if reads_width(name, parameter)} == growing
    assert len(growing) > 8


def test_rates_and_decays_of_groups() -> None:
    """Four times the base width: a quarter of the rate and four times the decay for matrices, vectors as ever."""
    config = config_of("mamba", 256, "mup")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, weight_decay=0.05))
    objective = build_objective(config.encoder_config(), config.objective_config(CLASSES), device="meta")
    names = {id(parameter): name.removeprefix("module.") for name, parameter in objective.named_parameters()}
    found = {
        names[id(parameter)]: (group["weight_decay"], group["lr_scale"])
        for group in parameter_groups(objective, config)
        for parameter in group["params"]
    }
    assert found["encoder.blocks.0.mixer.in_proj.weight"] == found["head.weight"] == (0.2, 0.25)
    assert found["encoder.blocks.0.mixer.scan.A_log"] == found["encoder.embedding.patch.weight"] == (0.05, 1.0)
    assert found["encoder.blocks.0.norm1.weight"] == found["head.bias"] == (0.0, 1.0)


def test_readouts_start_smaller() -> None:
    """The head's deviation falls as 1 / width, that of the decoder's input as 1 / sqrt(width) beyond the standard."""
    for objective, name, power in (
        (SupervisedConfig(classes=CLASSES), "module.head.weight", 1.0),
        (ARConfig(cluster_side=2, decoder_width=64), "module.decoder.from_encoder.weight", 0.5),
    ):
        config = EncoderConfig(depth=2, width=256, image_size=16, patch_size=4)
        plain = dict(build_objective(config, objective).named_parameters())
        scaled = dict(build_objective(dataclasses.replace(config, base_width=64), objective).named_parameters())
        torch.testing.assert_close(scaled[name], plain[name] * 4**-power)
        assert all(torch.equal(scaled[other], plain[other]) for other in plain if other != name)
