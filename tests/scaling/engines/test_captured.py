"""Passes that a GPU replays as CUDA graphs against the same passes kernel by kernel."""

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
from tests.scaling.runs import small_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: there are no CUDA graphs to record")


STEPS = 24


def engine_of(config: RunConfig, *, recorded: bool) -> Engine:
    engine = build_engine(config, Rank())
    engine.prepare(build_objective(config.encoder_config(), config.objective_config(3), seed=0), 10)
    assert engine.captured is not None, "compiled on a GPU"
    if not recorded:
        engine.captured.eager = STEPS * 4
    return engine


def one_step(engine: Engine, number: int, micro_batches: int, spoilt: bool) -> list[float]:
    """Losses and the gradient's norm of a step on a batch of its own."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    if spoilt:
        images[3, 0, 5, 5] = float("nan")
    seen = []
    for part, image in enumerate(images.cuda().chunk(micro_batches), start=1):
        loss, _ = engine.forward(image, None, Noise(), last=part == micro_batches)
        engine.backward(loss / micro_batches)
        seen.append(loss.item())
    return [*seen, engine.step(1e-3).item()]


@pytest.mark.parametrize("engine", ["single", "ddp"])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_replays_are_the_passes_they_record(shards: Path, engine: str, micro_batches: int) -> None:
    """Losses and norms of every step, weights and moments at the end; one batch of them is masked."""
    config = dataclasses.replace(small_config(shards, strategy="ar", ema=0.5), compile=True, engine=engine)
    recorded, plain = (engine_of(config, recorded=answer) for answer in (True, False))
    for number in range(STEPS):
        found, expected = (one_step(each, number, micro_batches, number == STEPS - 3) for each in (recorded, plain))
        assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert recorded.captured is not None
    assert len(recorded.captured.recordings) == min(micro_batches, 3)
    ours, theirs = recorded.state(), plain.state()
    assert ours["skipped"] == 1
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_evaluation_between_replays_changes_nothing(shards: Path) -> None:
    config = dataclasses.replace(small_config(shards, strategy="ar"), compile=True)
    disturbed, calm = (engine_of(config, recorded=True) for _ in range(2))
    for number in range(8):
        assert one_step(disturbed, number, 1, False) == one_step(calm, number, 1, False)
        with disturbed.evaluating(averaged=False), torch.no_grad():
            disturbed.objective(torch.randn(16, 3, 32, 32, device="cuda"), None, Noise())
