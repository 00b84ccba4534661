"""The dry run's peak against what the allocator of real steps saw, against published GPU peaks and closed forms.

Peaks of several ranks are in test_memory, beside the estimate's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml

from scaling.bench.memory import peak_bytes
from scaling.bench.trainer import StepCase, Trainer
from scaling.config import FSDPConfig
from scaling.dryrun import dry_run
from scaling.environment import Rank
from scaling.errors import UserError
from scaling.memory import memory
from tests.scaling.test_quickstart import armscale

CPU = torch.device("cpu")
CASES = {
    "autoregressive": StepCase(size="pico", micro_batch=16),
    "accumulation": StepCase(size="pico", micro_batch=4, accumulation=2),
    "masked vit": StepCase(size="pico", micro_batch=16, encoder="vit", strategy="mae"),
    "vit classifier": StepCase(size="pico", micro_batch=16, encoder="vit", strategy="scratch", stage="finetune"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_peak_of_a_real_step(case: StepCase) -> None:
    """Within 2 %: what autograd keeps and when it lets go is the same."""
    config = case.config()

    def run() -> None:
        trainer = Trainer(config, Rank(), "torch")
        trainer.step()
        trainer.step()

    assert dry_run(config, 1, 1000, on_gpu=False).peak == pytest.approx(peak_bytes(run, CPU), rel=0.02)
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("size", "stage", "batch", "gibibytes"),
    [("base", "pretrain", 256, 22.26), ("base", "finetune", 128, 29.06), ("large", "pretrain", 128, 29.00)],
)
def test_peak_of_a_gpu(size: str, stage: str, batch: int, gibibytes: float) -> None:
    """docs/performance.md: measured on an H200, bf16, eager."""
    pytest.importorskip("triton")
    config = StepCase(size=size, stage=stage, micro_batch=batch, precision="bf16").config()
    assert dry_run(config, 1, 1000).peak / 2**30 == pytest.approx(gibibytes, rel=0.02)


@pytest.mark.slow
def test_huge_on_64_ranks() -> None:
    """Between steps a rank of four replicas holds a sixteenth: weights and two moments of fp32."""
    spread = FSDPConfig(replicas=4)
    config = StepCase(size="huge", micro_batch=64, precision="bf16", engine="fsdp", fsdp=spread).config(64)
    found = dry_run(config, 64, 1000)
    estimate = memory(config, 64, 1000)
    assert found.resident == pytest.approx(estimate.weights + estimate.moments, rel=0.02)
    assert found.peak == pytest.approx(estimate.peak, rel=0.1)


def test_replicas_keep_their_gradients() -> None:
    config = StepCase(size="pico", micro_batch=2, engine="ddp").config(2)
    alone = dry_run(dataclasses.replace(config, engine="single"), 1, 1000).resident
    estimate = memory(config, 2, 1000)
    assert dry_run(config, 2, 1000).resident - alone == estimate.gradients


def test_what_a_run_would_refuse() -> None:
    with pytest.raises(UserError, match="global_batch"):
        dry_run(StepCase(size="pico", micro_batch=3, engine="fsdp").config(), 2, 1000)
    config = StepCase(size="pico", engine="fsdp", fsdp=FSDPConfig(replicas=3)).config(4)
    with pytest.raises(UserError, match=r"fsdp\.replicas"):
        dry_run(config, 4, 1000)


def test_the_command(tmp_path: Path) -> None:
    """Needs no data; says what does not fit with exit status 2, and what it knows by formula alone."""
    config = {"engine": "fsdp", "precision": "bf16", "train": {"images": 1 << 20, "global_batch": 4096, "lr": 1e-3}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))

    def try_out(*options: str) -> tuple[int, str]:
        ended = armscale("run", "run.yaml", *options, "--dry-run", "--ranks", "16", cwd=tmp_path)
        return ended.returncode, ended.stdout + ended.stderr

    status, told = try_out("--device", "H100")
    assert (status, "16 ranks" in told, "fits H100" in told) == (0, True, True), told
    status, told = try_out("--device", "T4")
    assert (status, "--device" in told, "Traceback" in told) == (2, True, False), told
    status, told = try_out("engine=deepspeed")
    assert (status, "by formula alone" in told) == (0, True), told
    ended = armscale("run", "run.yaml", "--ranks", "16", cwd=tmp_path)
    assert (ended.returncode, "--ranks" in ended.stderr, "--dry-run" in ended.stderr) == (2, True, True), ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
