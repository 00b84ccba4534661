"""The loop: one for all strategies and stages, on any engine."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.batch import Batch
from scaling import checkpoint
from scaling.cost import utilisation
from scaling.environment import device_name
from scaling.evaluate import evaluate, having_turn
from scaling.randomness import step_noise
from scaling.schedule import learning_rate
from scaling.stop import Stopped

if TYPE_CHECKING:
    from scaling.run import Run


def train(run: Run) -> None:
    """Trains `run` from where its counters stand to its last step, and commits that step.

    Raises Stopped, with the state committed, when any rank was asked to stop.
    """
    engine, counters, config = run.engine, run.counters, run.config.train
    batches = run.open_training_stream()
    interval = Interval()
    run.stop.arm()
    while counters.step < run.steps:
        total = torch.zeros((), device=engine.device)
        for micro in range(run.accumulation):
            batch = interval.fetch(batches)
            images, labels = run.inputs(batch)
            noise = step_noise(run.config.seed, run.config.stage, batch.positions, tokens=run.masked, depth=run.dropped)
            loss, _ = engine.forward(images, labels, noise.to(engine.device), last=micro == run.accumulation - 1)
            loss = loss / run.accumulation
            engine.backward(loss)
            total += loss.detach()
        norm = engine.step(learning_rate(config, counters.step, run.steps))
        counters.step += 1
        counters.images_seen = batch.images_seen
        interval.add(total, norm)

        finished = counters.step == run.steps
        if counters.step % config.log_every == 0 or finished:
            interval.write(run, batch.epoch)
        stopping = engine.any(run.stop.requested())
        evaluating = not finished and bool(having_turn(run.config, counters.step, finished=False))
        if finished or stopping or evaluating or counters.step % config.checkpoint_every == 0:
            interval.credit(run)
            checkpoint.save(run.attempt, engine.state(), counters, config.keep_checkpoints)
            interval.exclude_save()
        if stopping and not finished:
            raise Stopped(f"{run.stop.reason or 'another rank was asked to stop'} at step {counters.step}")
        if evaluating:  # after the state is committed, so that a stop in its midst loses nothing
            evaluate(run, finished=False)
            interval.exclude_save()


@dataclass
class Interval:
    """Times and losses since the last line of metrics.jsonl. Losses stay on the device until the line is written."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    data_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    credited: float = field(default_factory=time.perf_counter)

    def fetch(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch; waiting for it is the data stall."""
        before = time.perf_counter()
        batch = next(batches)
        self.data_seconds += time.perf_counter() - before
        for name in batch.skipped:
            print(f"unreadable and replaced: {name}", file=sys.stderr)
        return batch

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """One step is done."""
        self.losses.append(loss)
        self.norms.append(norm)

    def credit(self, run: Run) -> None:
        """Moves the time since the last checkpoint into the counters that are about to be committed."""
        now = time.perf_counter()
        run.counters.gpu_seconds += (now - self.credited) * run.engine.rank.ranks
        self.credited = now

    def exclude_save(self) -> None:
        """The time since `credit` went into a checkpoint: it is no step's, and no work that the checkpoint holds."""
        now = time.perf_counter()
        self.started += now - self.credited
        self.credited = now

    def write(self, run: Run, epoch: int) -> None:
        """Reads the losses back, the interval's one synchronisation, and writes the line."""
        losses, norms = torch.stack(self.losses), torch.stack(self.norms)
        loss = run.engine.sum(losses.mean()).item() / run.engine.rank.ranks
        steps = len(self.losses)
        seconds = (time.perf_counter() - self.started) / steps
        config, rank = run.config, run.engine.rank
        rate = config.train.global_batch / seconds
        device = device_name(run.engine.device)
        run.metrics.write({
            "stage": config.stage,
            "step": run.counters.step,
            "images_seen": run.counters.images_seen,
            "epoch": epoch,
            "loss": loss,
            "lr": learning_rate(config.train, run.counters.step - 1, run.steps),
            "grad_norm": norms[-1].item(),
            "step_seconds": seconds,
            "data_seconds": self.data_seconds / steps,
            "images_per_second": rate,
            "tokens_per_second": rate * run.cost.tokens_per_image,
            "model_flops_per_image": run.cost.flops_per_image,
            "mfu": utilisation(run.cost.flops_per_image, rate / rank.ranks, device, config.precision),
            "memory_bytes": peak_memory(run.engine.device),
            "devices": rank.ranks,
            "nodes": rank.nodes,
            "micro_batch": run.micro_batch,
            "skipped_steps": int(run.engine.skipped.item()),
        })  # fmt: skip
        run.attempt.set_status("running", step=run.counters.step)
        self.losses, self.norms, self.data_seconds = [], [], 0.0
        self.started = time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on a GPU; on a CPU the peak resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
