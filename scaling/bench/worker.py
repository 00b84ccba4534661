"""One rank of a bench on several, as `scaling.bench.ranks` starts it: every case in turn, on all ranks together."""

from __future__ import annotations

import gc
import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scaling import checkpoint
from scaling.attempt import Attempt
from scaling.bench.ceilings import synchronizer
from scaling.bench.memory import peak_bytes
from scaling.bench.ranks import RankCase
from scaling.bench.timing import summarize
from scaling.bench.trainer import Trainer
from scaling.config import TrainConfig
from scaling.dtensor import local, whole
from scaling.environment import Rank, device_name
from scaling.errors import UserError
from scaling.fragment import Fragment
from scaling.saver import Saver


def main(given: Path, output: Path) -> None:
    """Reads the cases, and on rank 0 appends a line of JSON for each as it is done."""
    rank = Rank.from_environment()
    rank.join()
    for case in pickle.loads(given.read_bytes()):
        try:
            report = _visit(case, rank)
        except (RuntimeError, UserError) as error:
            if rank.ranks > 1 and not isinstance(error, UserError):
                raise  # the other ranks wait in a collective
            report = {"error": f"{type(error).__name__}: {error}"}
        if rank.rank == 0:
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(report) + "\n")
        gc.collect()  # engines hold themselves in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    rank.leave()


def _visit(case: RankCase, rank: Rank) -> dict[str, Any]:
    torch.compiler.reset()  # shapes of an earlier case would make this one's dynamic
    config = case.step.config(rank.ranks, compile=case.compile)
    device = rank.device
    trainers: list[Trainer] = []

    def start() -> None:
        trainers.append(Trainer(config, rank, case.backend))
        trainers[0].warm_up()

    peak = peak_bytes(start, device)
    if case.folder:
        return _checkpoint(case, config.train, trainers[0], rank)
    seconds = [_seconds(trainers[0], rank) for _ in range(case.rounds)]
    trainers[0].engine.close()
    timing = summarize(seconds)
    return {
        "device": device_name(device),
        "global_batch": config.train.global_batch,
        "step_seconds": timing.row(),
        "images_per_second": config.train.global_batch / timing.median,
        "images_per_second_per_device": config.train.global_batch / timing.median / rank.ranks,
        "peak_memory_bytes": int(_greatest(float(peak), device, rank)),
    }


def _seconds(trainer: Trainer, rank: Rank) -> float:
    """Seconds a step of the slowest rank, over as many steps as the first says fill a second (a fifth on a CPU)."""
    wait, device = synchronizer(trainer.engine.device), trainer.engine.device
    shortest = 1.0 if device.type == "cuda" else 0.2

    def take(steps: int) -> float:
        wait()
        dist.barrier()
        start = time.perf_counter()
        for _ in range(steps):
            trainer.step()
        wait()
        return _greatest((time.perf_counter() - start) / steps, device, rank)

    return take(max(1, min(50, round(shortest / take(1)))))


def _greatest(value: float, device: torch.device, rank: Rank) -> float:
    number = torch.tensor(value, dtype=torch.float64, device=device)
    if rank.ranks > 1:
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
    return number.item()


def _checkpoint(case: RankCase, train: TrainConfig, trainer: Trainer, rank: Rank) -> dict[str, Any]:
    """Saves the state, or spoils it and reads it back; the digest (sums of all tensors) must survive both."""
    state, attempt = trainer.engine.state(), Attempt(Path(case.folder), 1, writes=rank.rank == 0)
    if not case.save:
        for tensor in state.values():
            local(tensor).zero_()
    start = time.perf_counter()
    if case.save:
        Saver(attempt, train).commit(state, checkpoint.Counters(step=2))
    else:
        assert checkpoint.load_latest(attempt.folder, state) is not None
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "digest": {name: _digest(tensor, rank) for name, tensor in state.items()}}


def _digest(tensor: Tensor, rank: Rank) -> float:
    """The sum of a tensor's absolute values; ranks have different runs of elements of a fragment."""
    if not isinstance(tensor, Fragment):
        return whole(tensor).double().abs().sum().item()
    total = local(tensor).double().abs().sum()
    if rank.ranks > 1:
        dist.all_reduce(total)
    return total.item()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
