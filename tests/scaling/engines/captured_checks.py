"""Passes that a GPU replays as CUDA graphs against the same passes kernel by kernel, on as many ranks as there are.

Called by torchrun with a run's config.yaml and the number of micro-batches a step; any failure ends it with 1.
"""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from models.build import build_objective
from models.noise import Noise
from scaling.config import RunConfig
from scaling.dtensor import whole
from scaling.engines import build_engine
from scaling.engines.base import Engine
from scaling.environment import Rank
from scaling.reading import load_run

STEPS = 24


def engine_of(config: RunConfig, rank: Rank, *, recorded: bool) -> Engine:
    engine = build_engine(config, rank)
    engine.prepare(build_objective(config.encoder_config(), config.objective_config(3), seed=0), 10)
    assert engine.captured is not None, "compiled on a GPU"
    if not recorded:
        engine.captured.eager = STEPS * 4
    return engine


def one_step(engine: Engine, number: int, micro_batches: int, spoilt: bool) -> list[float]:
    """Losses and the gradient's norm of a step on a batch of this rank's own."""
    generator = torch.Generator().manual_seed(100 * number + engine.rank.rank)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    if spoilt:
        images[3, 0, 5, 5] = float("nan")
    seen = []
    for part, image in enumerate(images.to(engine.device).chunk(micro_batches), start=1):
        loss, _ = engine.forward(image, None, Noise(), last=part == micro_batches)
        engine.backward(loss / micro_batches)
        seen.append(loss.item())
    return [*seen, engine.step(1e-3).item()]


def check_replays(config: RunConfig, rank: Rank, micro_batches: int) -> None:
    recorded, plain = (engine_of(config, rank, recorded=answer) for answer in (True, False))
    try:
        compare(recorded, plain, micro_batches)
    finally:
        recorded.close()


def compare(recorded: Engine, plain: Engine, micro_batches: int) -> None:
    """Losses and norms of every step, weights and moments at the end; one batch of them is masked."""
    for number in range(STEPS):
        found, expected = (one_step(each, number, micro_batches, number == STEPS - 3) for each in (recorded, plain))
        assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert recorded.captured is not None
    assert len(recorded.captured.recordings) == min(micro_batches, 3)
    ours, theirs = recorded.state(), plain.state()
    assert ours["skipped"] == 1
    for name, tensor in theirs.items():
        torch.testing.assert_close(whole(ours[name]), whole(tensor), rtol=1e-4, atol=1e-5, msg=name)


if __name__ == "__main__":
    check_replays(load_run(Path(sys.argv[1])), Rank.from_environment(), int(sys.argv[2]))
    dist.destroy_process_group()
