"""A sharded step against torch's own clipping and AdamW on whole tensors; torchrun starts this file.

Called with a run's config.yaml; any failure ends it with 1.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.build import build_objective
from models.noise import Noise
from scaling.config import FSDPConfig, RunConfig
from scaling.dtensor import local, whole
from scaling.engines import build_engine
from scaling.engines.base import Engine
from scaling.environment import Rank
from scaling.optimizer import parameter_groups, set_learning_rate
from scaling.reading import load_run
from tests.scaling.runs import small_config

SPREAD = (FSDPConfig(), FSDPConfig(replicas=2), FSDPConfig(offload=True, reshard_after_forward=False))
CLASSES = 3  # no multiple of the ranks: the head's parts differ in length, and the class token is one rank's alone


class SpreadOperators(TorchDispatchMode):
    """Names the operators that are called on DTensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def accumulate(engine: Engine, seed: int) -> None:
    """The gradients of two micro-batches of this rank's own images."""
    generator = torch.Generator().manual_seed(100 * seed + engine.rank.rank)
    for last in (False, True):
        images = torch.randn(2, 3, 32, 32, generator=generator)
        labels = torch.rand(2, CLASSES, generator=generator).softmax(1)
        loss, _ = engine.forward(images.to(engine.device), labels.to(engine.device), Noise(), last=last)
        engine.backward(loss / 2)


def check_update(config: RunConfig) -> None:
    """Norms, weights and moments of three steps, where parts are uneven or empty; no operator is a DTensor's."""
    encoder, head = config.encoder_config(), config.objective_config(CLASSES)
    plain = build_objective(encoder, head, seed=0)
    reference = torch.optim.AdamW(parameter_groups(plain, config), lr=0.0, betas=config.train.betas, foreach=False)
    engine = build_engine(config, Rank.from_environment())
    engine.prepare(build_objective(encoder, head, seed=0), 10)
    shards = engine.rank.ranks // config.fsdp.replicas
    uneven = [p for p in engine.objective.parameters() if local(p).numel() * shards != p.numel()]
    assert bool(uneven) == (shards > 1)
    for step in range(3):
        accumulate(engine, step)
        for name, parameter in engine.objective.named_parameters():
            assert parameter.grad is not None, name
            plain.get_parameter(name).grad = whole(parameter.grad).to("cpu", copy=True)
        expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), config.train.clip)
        set_learning_rate(reference, 1e-3)
        reference.step()
        with SpreadOperators() as operators:
            norm = engine.step(1e-3)
        assert operators.names == []
        assert all(parameter.grad is None for parameter in engine.objective.parameters())
        torch.testing.assert_close(norm.cpu(), expected, rtol=1e-5, atol=0.0)
        assert norm > config.train.clip
        assert_equal_state(engine, plain, reference)


def assert_equal_state(engine: Engine, plain: torch.nn.Module, reference: torch.optim.Optimizer) -> None:
    state = engine.state()
    for name, parameter in plain.named_parameters():
        moments = reference.state[parameter]
        torch.testing.assert_close(whole(state[f"model.{name}"]).cpu(), parameter.detach(), rtol=1e-5, atol=1e-6)
        for moment in ("exp_avg", "exp_avg_sq"):
            held = state[f"optimizer.{name}.{moment}"]
            assert (held.shape, held.stride()) == (parameter.shape, parameter.stride()), name
            torch.testing.assert_close(whole(held).cpu(), moments[moment], rtol=1e-4, atol=1e-9)
        assert state[f"optimizer.{name}.step"] == moments["step"]


if __name__ == "__main__":
    loaded = load_run(Path(sys.argv[1]))
    tuned = small_config(
        Path(loaded.data.shards), stage="finetune", strategy="mae", engine="fsdp", drop_path=0.0, clip=0.01, ema=0.5
    )
    for options in SPREAD:
        check_update(dataclasses.replace(tuned, fsdp=options))
    dist.destroy_process_group()
