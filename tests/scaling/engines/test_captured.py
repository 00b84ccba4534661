"""Passes that a GPU replays as CUDA graphs: `captured_checks` says what is compared."""

import dataclasses
from pathlib import Path

import pytest
import torch

from models.noise import Noise
from scaling import rundir
from scaling.config import FSDPConfig, RunConfig
from scaling.environment import Rank
from tests.scaling.engines.captured_checks import check_replays, engine_of, one_step
from tests.scaling.engines.launch import launch
from tests.scaling.runs import carry_out, small_config, write_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: there are no CUDA graphs to record")


def compiled(shards: Path, engine: str, fsdp: FSDPConfig = FSDPConfig()) -> RunConfig:
    config = small_config(shards, strategy="ar", ema=0.5)
    return dataclasses.replace(config, compile=True, engine=engine, fsdp=fsdp)


@pytest.mark.parametrize("engine", ["single", "ddp", "fsdp"])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_replays_are_the_passes_they_record(shards: Path, engine: str, micro_batches: int) -> None:
    check_replays(compiled(shards, engine), Rank(), micro_batches)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize(
    ("engine", "fsdp"),
    [
        ("ddp", FSDPConfig()),
        ("fsdp", FSDPConfig()),
        ("fsdp", FSDPConfig(reshard_after_forward=False)),
        ("fsdp", FSDPConfig(replicas=2)),
    ],
)
def test_replays_on_two_ranks(shards: Path, tmp_path: Path, engine: str, fsdp: FSDPConfig, micro_batches: int) -> None:
    folder = write_run(compiled(shards, engine, fsdp), tmp_path)
    launch("captured_checks", folder / rundir.CONFIG, micro_batches, ranks=2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_recorded_run_leaves_its_group(shards: Path, tmp_path: Path, engine: str) -> None:
    """NCCL ends a group when no graph holds its collectives any more: before, a run would hang at its very end."""
    config = compiled(shards, engine)
    train = dataclasses.replace(config.train, images=20 * config.train.global_batch)
    folder = write_run(dataclasses.replace(config, train=train), tmp_path)
    assert carry_out(folder, ranks=2)[-1]["step"] == 20


@pytest.mark.parametrize("engine", ["single", "fsdp"])
def test_evaluation_between_replays_changes_nothing(shards: Path, engine: str) -> None:
    config = compiled(shards, engine)
    disturbed, calm = (engine_of(config, Rank(), recorded=True) for _ in range(2))
    for number in range(8):
        assert one_step(disturbed, number, 1, False) == one_step(calm, number, 1, False)
        with disturbed.evaluating(averaged=False), torch.no_grad():
            disturbed.objective(torch.randn(16, 3, 32, 32, device="cuda"), None, Noise())
