"""Engines against `single`: the same losses and gradient norms, whatever the ranks, micro-batches and recomputation."""

import dataclasses
from pathlib import Path

import pytest
import torch

from models.build import build_objective
from models.noise import Noise
from scaling.config import RunConfig
from scaling.engines import build_engine
from scaling.engines.base import Engine
from scaling.environment import Rank
from scaling.errors import UserError
from tests.scaling.engines.engine_checks import check_scan_parameters
from tests.scaling.runs import carry_out, curve, small_config, write_run

MIXED = {"drop_path": 0.2, "ema": 0.5, "mixup": 0.8, "cutmix": 1.0, "mix_group": 4, "randaugment": ""}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "strategy", "options"), [("pretrain", "mae", {}), ("finetune", "scratch", MIXED)], ids=["mae", "finetune"]
)
def test_two_ranks_equal_one(
    tmp_path: Path, shards: Path, stage: str, strategy: str, options: dict[str, object]
) -> None:
    """Losses and gradient norms to 1e-5 relative, with masking, drop path, mixup and the average on."""
    config = small_config(shards, stage=stage, strategy=strategy, **options)
    alone = curve(carry_out(write_run(config, tmp_path / "alone")))
    spread = dataclasses.replace(config, engine="ddp", train=dataclasses.replace(config.train, micro_batch=4))
    together = curve(carry_out(write_run(spread, tmp_path / "spread"), ranks=2))
    assert len(alone) == len(together) == 6
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def engine_of(config: RunConfig, steps: int = 10) -> Engine:
    engine = build_engine(config, Rank())
    engine.prepare(build_objective(config.encoder_config(), config.objective_config(3), seed=0), steps)
    return engine


def one_step(engine: Engine, micro_batches: int, spoilt: bool = False) -> float:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    noise = torch.rand(16, 64, generator=generator)
    if spoilt:
        images[3, 0, 5, 5] = float("nan")
    total = 0.0
    chunks = list(zip(images.chunk(micro_batches), noise.chunk(micro_batches), strict=True))
    for number, (image, mask) in enumerate(chunks):
        loss, _ = engine.forward(image, None, Noise(mask=mask), last=number == len(chunks) - 1)
        engine.backward(loss / micro_batches)
        total += loss.item() / micro_batches
    engine.step(1e-3)
    return total


@pytest.mark.parametrize("strategy", ["ar", "mae"])
def test_accumulation_and_recomputation_change_nothing(shards: Path, strategy: str) -> None:
    config = small_config(shards, strategy=strategy)
    plain, accumulated = engine_of(config), engine_of(config)
    checkpointed = engine_of(dataclasses.replace(config, checkpointing=True))
    for _ in range(3):
        expected = one_step(plain, 1)
        assert one_step(checkpointed, 1) == pytest.approx(expected, rel=1e-6)
        assert one_step(accumulated, 4) == pytest.approx(expected, rel=1e-5)


def test_a_non_finite_gradient_changes_nothing_to_the_bit(shards: Path) -> None:
    """Weights, moments, their step count and the average stay; the next step is the one that would have come."""
    config = small_config(shards, ema=0.5)
    disturbed, calm = engine_of(config), engine_of(config)
    for engine in (disturbed, calm):
        one_step(engine, 1)
    before = {name: tensor.clone() for name, tensor in disturbed.state().items()}
    one_step(disturbed, 2, spoilt=True)
    after = disturbed.state()
    assert after["skipped"] == 1
    assert all(torch.equal(before[name], after[name]) for name in before if name != "skipped")
    assert one_step(disturbed, 1) == one_step(calm, 1)
    ours, theirs = disturbed.state(), calm.state()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name != "skipped")


def test_clipping_and_the_reported_norm(shards: Path) -> None:
    """The norm is that before clipping, by its definition; AdamW's first moment holds the clipped gradient."""
    config = small_config(shards, clip=0.01)
    engine = engine_of(config)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss, _ = engine.forward(images, None, Noise(), last=True)
    engine.backward(loss)
    gradients = [p.grad.clone() for p in engine.objective.parameters() if p.grad is not None]
    expected = torch.cat([gradient.flatten() for gradient in gradients]).double().norm()
    assert engine.step(1e-3).item() == pytest.approx(expected.item(), rel=1e-5)
    moments = [tensor for name, tensor in engine.state().items() if name.endswith(".exp_avg")]
    clipped = torch.cat([moment.flatten() for moment in moments]).double().norm() / (1 - config.train.betas[0])
    assert clipped.item() == pytest.approx(0.01, rel=1e-3)


def test_the_average_against_its_definition(shards: Path) -> None:
    config = small_config(shards, ema=0.4)
    engine = engine_of(config, steps=10)
    assert engine.average is not None
    name, parameter = next(iter(engine.objective.named_parameters()))
    expected = parameter.detach().double().clone()
    for _ in range(5):
        one_step(engine, 1)
        expected += (parameter.detach().double() - expected) / 4.0
    torch.testing.assert_close(engine.average.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-8)
    own = parameter.detach().clone()
    with engine.average.applied():
        assert torch.equal(parameter, engine.average.state_dict()[name])
    assert torch.equal(parameter, own)


def test_scan_parameters_reach_the_operator_as_they_are_under_bf16(shards: Path) -> None:
    check_scan_parameters(small_config(shards, strategy="mae"))


def test_ranks_must_divide_the_batch(shards: Path) -> None:
    config = dataclasses.replace(small_config(shards), engine="ddp")
    with pytest.raises(UserError, match="multiples of 3 ranks"):
        build_engine(config, Rank(0, 3, 0, 1))
    with pytest.raises(UserError, match="ddp"):
        build_engine(small_config(shards), Rank(0, 2, 0, 1))
