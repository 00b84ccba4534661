"""What is known of each step: its times at once, its loss and norm one step late, so that the host never waits."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.batch import Batch
from scaling.checkpoint import Counters


@dataclass(frozen=True)
class Step:
    """One optimiser step. `number` counts from 1; `consumed` are the images taken from the stream up to its end."""

    number: int
    images_seen: int
    consumed: int
    epoch: int
    lr: float
    seconds: float
    data_seconds: float
    loss: float = math.nan  # mean over the step's images on all ranks
    norm: float = math.nan  # of the gradient before clipping
    skipped: int = 0  # batches up to here that left no trace in the weights

    @property
    def finite(self) -> bool:
        """Whether the update was made; else it was masked."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class StepClock:
    """Wall time of the steps and, of that, the data stall. Savings and evaluations are left out."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.data_seconds = 0.0
        self.fetching = False

    def fetch(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch; waiting for it is the data stall."""
        before = time.perf_counter()
        self.fetching = True
        batch = next(batches)
        self.fetching = False
        self.data_seconds += time.perf_counter() - before
        for name in batch.skipped:
            print(f"unreadable and replaced: {name}", file=sys.stderr)
        return batch

    def lap(self, counters: Counters, batch: Batch, lr: float) -> Step:
        """The step that has just been asked for; the next begins now."""
        now = time.perf_counter()
        seconds, data_seconds = now - self.started, self.data_seconds
        self.started, self.data_seconds = now, 0.0
        return Step(counters.step, counters.images_seen, counters.consumed, batch.epoch, lr, seconds, data_seconds)

    def restart(self) -> None:
        """The time since the last lap belongs to no step."""
        self.started, self.data_seconds = time.perf_counter(), 0.0


class Readback:
    """Scalars of a step on their way from the device: looked at while the next step is under way.

    Every rank gets the same values at the same step, so that what follows from them needs no agreement.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.pending: list[tuple[Step, Tensor, torch.cuda.Event | None]] = []

    def push(self, step: Step, loss: Tensor, norm: Tensor, skipped: Tensor, *, wait: bool) -> list[Step]:
        """The steps whose values have come, in order: the one before `step` and, if asked to `wait`, `step` itself."""
        values = torch.stack([loss.detach().float(), norm.detach().float(), skipped])
        arrived = None
        if self.on_gpu:
            values = torch.empty(3, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self.pending.append((step, values, arrived))
        ready = len(self.pending) - (0 if wait else 1)
        done, self.pending = self.pending[:ready], self.pending[ready:]
        return [_complete(*entry) for entry in done]

    def clear(self) -> None:
        """Forgets what is on its way."""
        self.pending.clear()


def _complete(step: Step, values: Tensor, arrived: torch.cuda.Event | None) -> Step:
    if arrived is not None:
        arrived.synchronize()
    loss, norm, skipped = values.tolist()
    return replace(step, loss=loss, norm=norm, skipped=int(skipped))
