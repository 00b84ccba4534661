"""The estimate of memory against peaks that the allocator of real steps saw, and its arithmetic."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.parameters import parameters
from scaling.bench.memory import peak_bytes
from scaling.bench.ranks import RankCase, measure
from scaling.bench.trainer import StepCase, Trainer, resident_inputs
from scaling.config import ZERO_BUCKET, DeepSpeedConfig, FSDPConfig
from scaling.devices import DEVICES, dense_peak, find_device, usable_memory
from scaling.dryrun import dry_run
from scaling.environment import Rank
from scaling.errors import UserError
from scaling.memory import FP32, memory

CPU = torch.device("cpu")
BOUND = (0.9, 1.2)
"""Estimate over measured peak: a run that is told to fit should fit, and one that is refused should be near."""

CASES = {
    "autoregressive": StepCase(size="pico", micro_batch=16),
    "checkpointing": StepCase(size="pico", micro_batch=16, checkpointing=True),
    "bf16": StepCase(size="pico", micro_batch=16, precision="bf16"),
    "mostly weights": StepCase(size="micro", micro_batch=1),
    "accumulation": StepCase(size="pico", micro_batch=4, accumulation=2),
    "four directions": StepCase(size="pico", micro_batch=8, strategy="scratch", stage="finetune"),
    "four in bf16": StepCase(size="pico", micro_batch=8, strategy="scratch", stage="finetune", precision="bf16"),
    "masked": StepCase(size="pico", micro_batch=16, strategy="mae"),
    "vit": StepCase(size="pico", micro_batch=16, encoder="vit"),
    "masked vit": StepCase(size="pico", micro_batch=16, encoder="vit", strategy="mae", precision="bf16"),
    "vit classifier": StepCase(size="pico", micro_batch=16, encoder="vit", strategy="scratch", stage="finetune"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_estimate_against_a_real_step(case: StepCase) -> None:
    config = case.config()
    inputs = resident_inputs(config, CPU)
    given = inputs.images.nbytes + (0 if inputs.labels is None else inputs.labels.nbytes)

    def run() -> None:
        trainer = Trainer(config, Rank(), "torch")
        trainer.step()
        trainer.step()

    measured = peak_bytes(run, CPU) - given
    assert BOUND[0] <= memory(config, 1, 1000, on_gpu=False).peak / measured <= BOUND[1]


@pytest.mark.slow
def test_sharded_engines_on_real_ranks() -> None:
    """The estimate, and the dry run: beside it gloo clones what it reduces until it is sent, so that the clones of any
    number of blocks may be there at once (up to 2.6 of the largest were seen, by the load of the machine)."""
    tiny = StepCase(size="tiny", micro_batch=2, engine="fsdp")
    cases = [
        dataclasses.replace(tiny, engine="ddp"),
        tiny,
        dataclasses.replace(tiny, fsdp=FSDPConfig(reshard_after_forward=False)),
        dataclasses.replace(tiny, checkpointing=True),
    ]
    jobs = [RankCase(case, backend="torch", rounds=1) for case in cases]
    for case, row in zip(cases, measure(jobs, 2, device="cpu"), strict=True):
        measured, config = row["peak_memory_bytes"], case.config(2)
        counts = parameters(config.encoder_config(), config.objective_config(1000))
        cloned = FP32 * (counts.trained - counts.outside) if case.engine == "fsdp" else 0
        dry = dry_run(config, 2, 1000, on_gpu=False).peak
        assert dry / 1.02 <= measured <= 1.02 * (dry + cloned), case
        measured -= 2 * 3 * 192 * 192 * 4
        assert BOUND[0] <= memory(config, 2, 1000, on_gpu=False).peak / measured <= BOUND[1], case


@pytest.mark.slow
def test_zero_on_real_ranks() -> None:
    """Of stage 2, which overlaps communication on GPUs alone, without its second bucket; with what is offloaded."""
    options = [DeepSpeedConfig(stage, offload) for stage in (1, 2, 3) for offload in (False, True)]
    cases = [StepCase(size="tiny", micro_batch=2, engine="deepspeed", deepspeed=option) for option in options]
    jobs = [RankCase(case, backend="torch", rounds=1) for case in cases]
    for case, row in zip(cases, measure(jobs, 2, device="cpu"), strict=True):
        found = memory(case.config(2), 2, 1000, on_gpu=False)
        overlapped = FP32 * ZERO_BUCKET if case.deepspeed.stage == 2 else 0
        assert BOUND[0] <= (found.peak + found.host - overlapped) / row["peak_memory_bytes"] <= BOUND[1], case


def test_shards_and_replicas_divide_the_state() -> None:
    def state(ranks: int, fsdp: FSDPConfig) -> tuple[int, int]:
        found = memory(StepCase(size="large", engine="fsdp", fsdp=fsdp).config(ranks), ranks, 1000)
        return found.weights + found.gradients + found.moments + found.average, found.host

    whole = 16 * 303_721_696  # trained parameters of large in pretraining (sheet 1.1), four numbers of fp32 each
    assert state(1, FSDPConfig()) == (whole, 0)
    assert state(8, FSDPConfig())[0] == pytest.approx(whole / 8, abs=16)
    assert state(8, FSDPConfig(replicas=4))[0] == pytest.approx(whole / 2, abs=16)
    assert state(8, FSDPConfig(offload=True)) == (0, pytest.approx(whole / 8, abs=16))


def test_zero_divides_more_of_the_state_by_stage() -> None:
    """fp32 masters, two moments and their gradients by share, beside weights that are whole below stage 3."""
    one = 4 * 303_721_696
    expected = {1: (one + one / 8, one), 2: (one + one / 8, one / 8), 3: (2 * one / 8, one / 8)}
    for stage, (weights, gradients) in expected.items():
        case = dataclasses.replace(StepCase(size="large").config(8), engine="deepspeed")
        found = memory(dataclasses.replace(case, deepspeed=DeepSpeedConfig(stage)), 8, 1000)
        assert (found.weights, found.gradients) == (pytest.approx(weights, abs=16), pytest.approx(gradients, abs=16))
        assert found.moments == pytest.approx(2 * one / 8, abs=16)
        kept = memory(dataclasses.replace(case, deepspeed=DeepSpeedConfig(stage, offload=True)), 8, 1000)
        returning = 0 if stage == 3 else one / 8  # updated masters, before they are weights
        assert kept.weights + kept.host == pytest.approx(weights + 3 * one / 8 + returning, abs=32)


def test_huge_fits_where_it_should() -> None:
    single = StepCase(size="huge", precision="bf16", micro_batch=64)
    assert memory(single.config(), 1, 1000).fits("NVIDIA H200")
    assert not memory(single.config(), 1, 1000).fits("NVIDIA A10")
    spread = StepCase(size="huge", precision="bf16", micro_batch=8, engine="fsdp", checkpointing=True)
    assert memory(spread.config(8), 8, 1000).fits("NVIDIA A10")


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(UserError, match="global_batch"):
        memory(StepCase(micro_batch=3).config(), 2, 1000)
    with pytest.raises(UserError, match="gpu"):
        usable_memory("abacus")


@pytest.mark.parametrize(
    ("name", "memory", "bf16"),
    [
        ("NVIDIA H200", 141e9, 989e12),
        ("NVIDIA GH200 480GB", 96e9, 990e12),
        ("NVIDIA H100 80GB HBM3", 80e9, 989e12),
        ("NVIDIA H100 PCIe", 80e9, 756e12),
        ("NVIDIA A100-SXM4-40GB", 40e9, 312e12),
        ("NVIDIA A100 80GB PCIe", 80e9, 312e12),
        ("NVIDIA A10G", 24e9, 70e12),
        ("NVIDIA L40S", 48e9, 362e12),
        ("NVIDIA L4", 24e9, 121e12),
        ("Tesla V100-SXM2-32GB", 32e9, None),
    ],
)
def test_devices_by_the_names_that_drivers_give(name: str, memory: float, bf16: float | None) -> None:
    device = find_device(name)
    assert device is not None
    assert (device.memory, device.bf16, dense_peak(name, "bf16")) == (memory, bf16, bf16)


def test_no_name_hides_another() -> None:
    assert all(find_device(name) is device for name, device in DEVICES.items())
