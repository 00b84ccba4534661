"""Properties of engines that need two ranks; torchrun starts this file, and any failure ends it with 1.

Called with a run's config.yaml and the engines to check.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models import mamba
from models.build import build_objective, build_on_meta
from models.initialize import initialize
from models.noise import Noise
from models.transfer import transfer
from scaling.config import DeepSpeedConfig, FSDPConfig, RunConfig
from scaling.dtensor import local, whole
from scaling.engines import build_engine
from scaling.engines.base import Engine
from scaling.engines.zero import ZeroEngine
from scaling.environment import Rank
from scaling.fragment import Fragment
from scaling.reading import load_run
from tests.scaling.runs import small_config

SPREAD: dict[str, tuple[dict[str, Any], ...]] = {
    "ddp": ({},),
    "fsdp": (
        {"fsdp": FSDPConfig()},
        {"fsdp": FSDPConfig(replicas=2)},
        {"fsdp": FSDPConfig(offload=True, reshard_after_forward=False)},
    ),
    "deepspeed": (
        {"deepspeed": DeepSpeedConfig(stage=1)},
        {"deepspeed": DeepSpeedConfig(stage=2, offload=True)},
        {"deepspeed": DeepSpeedConfig(stage=3), "checkpointing": True},
    ),
}


def engine_of(config: RunConfig, source: dict[str, Tensor] | None = None) -> Engine:
    """On the meta device until each rank holds its part; `source` is a parent's state."""

    def fill(objective: nn.Module) -> None:
        initialize(objective, config.seed)
        if source is not None:
            transfer(source, objective.get_submodule("module"))

    engine = build_engine(config, Rank.from_environment())
    engine.prepare(build_on_meta(config.encoder_config(), config.objective_config(3)), 10, fill)
    return engine


def weights_of(engine: Engine) -> dict[str, Tensor]:
    """The whole parameters that the modules of this rank compute with."""
    gathered = contextlib.nullcontext()
    if isinstance(engine, ZeroEngine):
        gathered = engine.library.zero.GatheredParameters(list(engine.objective.parameters()))
    with gathered:
        return {name: whole(parameter).cpu().clone() for name, parameter in engine.objective.named_parameters()}


def assert_holds(held: Tensor, full: Tensor, name: str) -> None:
    """What a rank's state holds of a tensor is that of the whole one, to the bit."""
    if isinstance(held, Fragment):
        full, held = full.flatten().narrow(0, held.offset, held.elements.numel()), held.elements
    assert torch.equal(whole(held).cpu(), full), name


def one_step(engine: Engine, spoilt: bool = False) -> Tensor:
    """Two micro-batches of this rank's own images."""
    generator = torch.Generator().manual_seed(engine.rank.rank)
    for last in (False, True):
        images = torch.randn(4, 3, 32, 32, generator=generator)
        if spoilt and last:
            images[1, 0, 5, 5] = float("nan")
        loss, _ = engine.forward(images, None, Noise(mask=torch.rand(4, 64, generator=generator)), last=last)
        engine.backward(loss / 2)
    return engine.step(1e-3)


def check_initial_values(config: RunConfig) -> None:
    """Each rank's parts together are the values that one rank draws, or takes over from a parent, to the bit."""
    objective = build_objective(config.encoder_config(), config.objective_config(3), seed=config.seed)
    for name, weight in weights_of(engine_of(config)).items():
        assert torch.equal(weight, objective.get_parameter(name)), name
    tuned = small_config(Path(config.data.shards), stage="finetune", strategy="mae")
    expected = build_objective(tuned.encoder_config(), tuned.objective_config(3), seed=tuned.seed)
    source = objective.get_submodule("module").state_dict()
    transfer(source, expected.get_submodule("module"))
    child = engine_of(
        dataclasses.replace(tuned, engine=config.engine, fsdp=config.fsdp, deepspeed=config.deepspeed), source
    )
    for name, weight in weights_of(child).items():
        assert torch.equal(weight, expected.get_parameter(name)), name


def check_memory(config: RunConfig) -> None:
    """A rank holds its share of weights and moments, and at most that of gathered weights between two steps."""
    engine = engine_of(config)
    one_step(engine)
    shares = 1 if config.engine == "ddp" else engine.rank.ranks // config.fsdp.replicas
    held = {name: (local(tensor).numel(), tensor.numel()) for name, tensor in engine.state().items()}
    for kind in ("model", "average", "optimizer"):
        parts = [sizes for name, sizes in held.items() if name.startswith(kind) and not name.endswith(".step")]
        assert 0 < sum(part for part, _ in parts) <= 1.1 * sum(total for _, total in parts) / shares
    parameters = sum(local(parameter).numel() for parameter in engine.objective.parameters())
    assert config.engine != "fsdp" or parameters <= 1.1 * sum(p.numel() for p in engine.objective.parameters()) / shares
    assert config.engine != "deepspeed" or (parameters == 0) == (config.deepspeed.stage == 3)


def check_masked_step(config: RunConfig) -> None:
    """A NaN on rank 1 makes both ranks skip, to the bit; the next step is the one that would have come."""
    disturbed, calm = engine_of(config), engine_of(config)
    for engine in (disturbed, calm):
        one_step(engine)
    before = {name: local(tensor).clone() for name, tensor in disturbed.state().items()}
    assert not torch.isfinite(one_step(disturbed, spoilt=disturbed.rank.rank == 1))
    after = {name: local(tensor) for name, tensor in disturbed.state().items()}
    assert after.pop("skipped") == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert torch.equal(one_step(disturbed), one_step(calm))
    for name, tensor in calm.state().items():
        assert name == "skipped" or torch.equal(local(tensor), local(disturbed.state()[name])), name


def check_evaluation(config: RunConfig) -> None:
    """Ranks call the module a different number of times, with either weights; training then goes on unchanged."""
    engine, calm = engine_of(config), engine_of(config)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    noise = Noise(mask=torch.rand(2, 64, generator=torch.Generator().manual_seed(6)))
    first, _ = measured(engine, images, noise, averaged=False, times=1)
    for one in (engine, calm):
        one_step(one)
    raw, parameters = measured(engine, images, noise, averaged=False, times=1 + engine.rank.rank)
    average, averages = measured(engine, images, noise, averaged=True, times=2 - engine.rank.rank)
    assert len({first, raw, average}) == 3
    assert engine.average is not None
    for name, tensor in engine.state().items():
        if name.startswith("average."):
            assert_holds(tensor, averages[name.removeprefix("average.")], name)
    assert any(not torch.equal(averages[name], parameters[name]) for name in averages)
    assert torch.equal(one_step(engine), one_step(calm))


def measured(
    engine: Engine, images: Tensor, noise: Noise, *, averaged: bool, times: int
) -> tuple[float, dict[str, Tensor]]:
    """The loss of an evaluation, and the parameters that it computes with."""
    with engine.evaluating(averaged=averaged), torch.inference_mode():
        for _ in range(times):
            loss, _ = engine.objective(images, None, noise)
        parameters = {name: local(parameter).cpu().clone() for name, parameter in engine.objective.named_parameters()}
    return loss.item(), parameters


def check_scan_parameters(config: RunConfig) -> None:
    """Under bf16, A, D and the time step's bias reach the operator in fp32 and are the master weights to the bit."""
    engine = engine_of(dataclasses.replace(config, precision="bf16", checkpointing=False))
    one_step(engine)
    scans = [name.removesuffix("A_log") for name, _ in engine.objective.named_parameters() if name.endswith("A_log")]
    masters = weights_of(engine)
    for name, tensor in engine.state().items():
        if name.startswith("model."):
            assert tensor.dtype == torch.float32
            assert_holds(tensor, masters[name.removeprefix("model.")], name)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    operator = mamba.selective_scan

    def recording(u, delta, A, B, C, D, z, delta_bias, *others, **options):  # type: ignore[no-untyped-def]
        seen.append((A.detach().clone(), D.detach().clone(), delta_bias.detach().clone()))
        return operator(u, delta, A, B, C, D, z, delta_bias, *others, **options)

    mamba.selective_scan = recording
    one_step(engine)
    mamba.selective_scan = operator
    assert len(seen) == 2 * len(scans) > 0
    for name, (A, D, bias) in zip(scans, seen, strict=False):
        for found, expected in ((A, -masters[f"{name}A_log"].exp()), (D, masters[f"{name}D"])):
            assert found.dtype == torch.float32
            assert torch.equal(found, expected), name
        assert torch.equal(bias, masters[f"{name}dt_bias"]), name


if __name__ == "__main__":
    loaded = load_run(Path(sys.argv[1]))
    for chosen in sys.argv[2:]:
        for options in SPREAD[chosen]:
            spread = dataclasses.replace(loaded, engine=chosen, **options)
            check_initial_values(spread)
            check_memory(spread)
            check_masked_step(spread)
            check_evaluation(spread)
            check_scan_parameters(spread)
    dist.destroy_process_group()
