"""Initial values: a function of seed and name alone, with the distributions of the sheet (1.6)."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from models.build import build_objective
from models.config import ENCODERS, EncoderConfig, ObjectiveConfig, SupervisedConfig
from models.initialize import initialize
from models.parallel import parallelize
from tests.models.configs import ALL, AR, LABELLED, MASKED, encoder, name


def values(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


@pytest.mark.parametrize(("config", "objective"), ALL, ids=name)
def test_meta_construction_gives_the_same_values(config: EncoderConfig, objective: ObjectiveConfig) -> None:
    direct = values(build_objective(config, objective, seed=5))
    module = build_objective(config, objective, seed=5, device="meta")
    assert all(tensor.is_meta for tensor in values(module).values())
    module.to_empty(device="cpu")
    for tensor in values(module).values():
        tensor.detach().fill_(7)
    initialize(module, seed=5)
    found = values(module)
    assert found.keys() == direct.keys()
    assert all(torch.equal(found[key], direct[key]) for key in direct)


def test_global_generator_plays_no_part() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = values(build_objective(encoder(), AR))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    second = values(build_objective(encoder(), AR))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_start_alike_under_every_objective(kind: str) -> None:
    states = [values(build_objective(encoder(kind), objective)) for objective in (AR, MASKED, LABELLED)]
    shared = [key for key in states[0] if ".encoder." in key and "order" not in key]
    assert len(shared) > 30
    for key in shared:
        assert torch.equal(states[0][key], states[1][key])
        assert torch.equal(states[0][key], states[2][key])


def test_seeds_and_names_differ() -> None:
    first, second = (values(build_objective(encoder(), AR, seed=seed)) for seed in (0, 1))
    key = "module.encoder.blocks.{}.mixer.in_proj.weight"
    assert not torch.equal(first[key.format(0)], second[key.format(0)])
    assert not torch.equal(first[key.format(0)], first[key.format(1)])


def shard(block: nn.Module, mesh: DeviceMesh) -> None:
    fully_shard(block, mesh=mesh)


def sharded_like_whole(rank: int, ranks: int, store: str) -> None:
    """On each rank: an objective built on meta and sharded by FSDP2 holds the values of one built in memory."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    for objective in (AR, LABELLED):
        module = build_objective(encoder(), objective, device="meta")
        parallelize(module, shard=partial(shard, mesh=mesh))
        module.to_empty(device="cpu")
        initialize(module, seed=2)
        whole = dict(build_objective(encoder(), objective, seed=2).named_parameters())
        for key, parameter in module.named_parameters():
            assert isinstance(parameter, DTensor)
            assert parameter.to_local().shape[0] <= -(-parameter.shape[0] // ranks)
            assert torch.equal(parameter.full_tensor(), whole[key])
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_shards_are_parts_of_the_whole(tmp_path: Path, ranks: int) -> None:
    """Three ranks divide none of the sizes evenly."""
    store = str(tmp_path / "store")
    if ranks == 1:
        sharded_like_whole(0, 1, store)
    else:
        mp.start_processes(sharded_like_whole, args=(ranks, store), nprocs=ranks, start_method="spawn")


def test_distributions() -> None:
    """Bounds, deviations and constants of section 1.6, on matrices large enough to see them."""
    config = dataclasses.replace(encoder(depth=2, width=256, patch_size=8), scan_directions=4, class_token=True)
    state = {
        key: tensor.detach()
        for key, tensor in build_objective(config, LABELLED).get_submodule("module").named_parameters()
    }
    block = "encoder.blocks.1."

    def uniform(key: str, bound: float) -> None:
        tensor = state[key]
        assert tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)

    uniform(block + "mixer.in_proj.weight", 256**-0.5)
    uniform(block + "mixer.x_proj.weight", 256**-0.5)
    uniform(block + "mixer.out_proj.weight", 512**-0.5)
    uniform(block + "mixer.dt_proj.weight", 16**-0.5)
    uniform(block + "mixer.conv.weight", 0.5)
    uniform(block + "mlp.w3.weight", (8 * 256 // 3) ** -0.5)
    assert torch.equal(state[block + "mixer.scan.A_log"][1000], torch.arange(1, 17).log())
    assert (state[block + "mixer.scan.D"] == 1).all()
    step = nn.functional.softplus(state[block + "mixer.scan.dt_bias"]).log()
    assert math.log(1e-3) - 1e-3 <= step.min() < math.log(2e-3)
    assert math.log(5e-2) < step.max() <= math.log(1e-1) + 1e-3
    assert step.std().item() == pytest.approx(math.log(100) / math.sqrt(12), rel=0.1)
    patch = state["encoder.embedding.patch.weight"]
    assert patch.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.02)
    assert state["encoder.embedding.cls_token"].std().item() == pytest.approx(0.02, rel=0.2)
    assert (state[block + "mlp.w12.bias"] == 0).all()
    assert (state[block + "norm1.weight"] == 1).all()


def test_head_starts_as_told() -> None:
    for std in (0.02, 2e-5):
        module = build_objective(encoder(width=256), SupervisedConfig(classes=1000, head_std=std))
        weight = module.get_parameter("module.head.weight")
        assert weight.std().item() == pytest.approx(std, rel=0.02)
