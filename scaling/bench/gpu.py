"""`armscale bench gpu`: everything that only GPUs can tell, in sections that each write their rows as they come.

On a CPU the same list runs at its smallest sizes, which tests the command and measures nothing. Rows that could not be
had (no memory, a library that is not installed) carry an error; a call that is cut off leaves what it had in the file.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.scan import available_backends
from scaling.bench.correct import check_kernels
from scaling.bench.kernels import time_kernels
from scaling.bench.ranks import RankCase, measure
from scaling.bench.scaling import world_sizes
from scaling.bench.step import step_bench
from scaling.bench.trainer import StepCase
from scaling.config import ZERO_STAGES, DeepSpeedConfig, FSDPConfig
from scaling.environment import device_name, git_commit, versions
from scaling.errors import UserError
from scaling.files import write_json

DIGEST_BOUND = 1e-6  # sums over shards are taken in another order
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Machine:
    """Where the sections run: `ranks` GPUs, or processes on the CPU; `limit` seconds for a section on several."""

    device: torch.device
    ranks: int
    limit: float
    rounds: int = 5

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def correctness(machine: Machine) -> Rows:
    """The scan and the convolution against their definition in float64."""
    if machine.on_gpu:
        yield from check_kernels(machine.device)
    else:
        yield from check_kernels(machine.device, lengths=(9,), channels=(12,), batch=1)


def kernels(machine: Machine) -> Rows:
    """Microseconds against mamba-ssm and causal-conv1d, and fractions of the ceilings."""
    if machine.on_gpu:
        yield from time_kernels(machine.device, rounds=machine.rounds)
    else:
        yield from time_kernels(machine.device, (1,), (16,), ((9, 1), (9, 4)), rounds=2)


def step_cases(machine: Machine) -> list[StepCase]:
    """Pretraining of the paper's sizes and finetuning of base, at batches that an 80 GB card holds."""
    if not machine.on_gpu:
        return [StepCase(size="pico", micro_batch=2)]
    pretraining = {"base": 256, "large": 128, "huge": 64}
    base, *larger = (StepCase(size=size, precision="bf16", micro_batch=batch) for size, batch in pretraining.items())
    return [base, StepCase(size="base", stage="finetune", precision="bf16", micro_batch=128), *larger]


def steps(machine: Machine) -> Rows:
    """Whole steps, eager and compiled, by backend, against the official loop."""
    modes = ("eager", "compiled") if machine.on_gpu else ("eager",)
    for case in step_cases(machine):
        yield step_bench(case, machine.device, modes=modes, rounds=machine.rounds)
        if machine.on_gpu:
            torch.cuda.empty_cache()


def _sharded(case: StepCase) -> list[StepCase]:
    """The case under every engine that spreads a model over ranks."""
    keep = FSDPConfig(reshard_after_forward=False)
    return [
        dataclasses.replace(case, engine="ddp"),
        dataclasses.replace(case, engine="fsdp"),
        dataclasses.replace(case, engine="fsdp", fsdp=keep),
        *(dataclasses.replace(case, engine="deepspeed", deepspeed=DeepSpeedConfig(stage)) for stage in ZERO_STAGES),
    ]


def sharding(machine: Machine) -> Rows:
    """Large and huge under each engine on all ranks, and alone on one: the difference is exposed communication."""
    cases = [
        case for case in step_cases(machine) if case.size in ("large", "huge", "pico") and case.stage == "pretrain"
    ]
    deadline, alone = time.monotonic() + machine.limit, dict[str, float | None]()
    # One start of the ranks for each size: ZeRO 3, which comes last, leaves its own functional.linear behind.
    for ranks, spread in ((1, cases), *((machine.ranks, _sharded(case)) for case in cases)):
        for row in _measure(machine, spread, ranks, deadline):
            rate = row.get("images_per_second_per_device")
            single = alone.setdefault(row["step"]["size"], rate)
            yield {**row, "exposed_communication_share": 1 - rate / single if rate and single else None}


def weak(machine: Machine) -> Rows:
    """Base (a batch a rank) on 1, 2, 4 .. ranks; efficiency against the engine single on one."""
    case, deadline, alone = step_cases(machine)[0], time.monotonic() + machine.limit, None
    for ranks in world_sizes(machine.ranks):
        engines = ("single",) if ranks == 1 else ("ddp", "fsdp")
        for row in _measure(machine, [dataclasses.replace(case, engine=name) for name in engines], ranks, deadline):
            rate = row.get("images_per_second_per_device")
            alone = rate if ranks == 1 else alone
            yield {**row, "efficiency": rate / alone if rate and alone else None}


def checkpoints(machine: Machine) -> Rows:
    """Large under FSDP2: saved on all ranks, read back on half of them, and on all under ZeRO-3 where DeepSpeed is
    installed; the digests of all tensors must agree."""
    case = next((case for case in step_cases(machine) if case.size == "large"), step_cases(machine)[0])
    sharded = dataclasses.replace(case, engine="fsdp")
    zero = dataclasses.replace(case, engine="deepspeed", deepspeed=DeepSpeedConfig(stage=3))
    half = max(1, machine.ranks // 2)
    passes = ((sharded, machine.ranks, True), (sharded, half, False), (zero, machine.ranks, False))
    deadline, digests = time.monotonic() + machine.limit, []
    with tempfile.TemporaryDirectory(prefix="armscale-checkpoint-") as folder:
        for spread, ranks, save in passes:
            job = RankCase(spread, folder=folder, save=save)
            for row in measure([job], ranks, device=machine.device.type, limit=deadline - time.monotonic()):
                if not row.get("error", "").startswith(UserError.__name__):  # an engine that is not here
                    digests.append(row.pop("digest", None))
                yield row
    worst, (saved, *read) = None, digests
    if saved and all(read):
        worst = max(abs(saved[name] - found[name]) / max(abs(saved[name]), 1e-12) for found in read for name in saved)
    yield {
        "tensors": len(saved or ()),
        "greatest_relative_difference": worst,
        "passed": worst is not None and worst < DIGEST_BOUND,
    }


def _measure(machine: Machine, cases: Sequence[StepCase], ranks: int, deadline: float) -> Rows:
    jobs = [RankCase(case, compile=machine.on_gpu, rounds=3) for case in cases]
    return measure(jobs, ranks, device=machine.device.type, limit=deadline - time.monotonic())


SECTIONS: dict[str, Callable[[Machine], Rows]] = {
    "correctness": correctness,
    "kernels": kernels,
    "steps": steps,
    "sharding": sharding,
    "weak": weak,
    "checkpoints": checkpoints,
}


def gpu_bench(
    machine: Machine, only: Sequence[str], output: Path, show: Callable[[str, dict[str, Any]], None]
) -> dict[str, Any]:
    """Runs the sections named (all if none is) and returns the report; after every row it is written to `output`."""
    for name in only:
        if name not in SECTIONS:
            raise UserError("--only", name, SECTIONS)
    report: dict[str, Any] = {
        "bench": "gpu",
        "device": device_name(machine.device),
        "devices": machine.ranks,
        "versions": versions(),
        "git_commit": git_commit(),
        "backends": {row.name: row.reason for row in available_backends()},
        "sections": {},
    }
    for name in only or SECTIONS:
        rows: list[dict[str, Any]] = []
        section: dict[str, Any] = {"seconds": 0.0, "complete": False, "error": None, "rows": rows}
        started = time.monotonic()
        report["sections"][name] = section
        try:
            for row in SECTIONS[name](machine):
                rows.append(row)
                section["seconds"] = time.monotonic() - started
                write_json(output, report)
                show(name, row)
            section["complete"] = True
        except Exception:  # noqa: BLE001 - the machine is lent by the minute: the other sections still run
            section["error"] = traceback.format_exc()
            show(name, {"error": section["error"]})
        write_json(output, report)
    return report
