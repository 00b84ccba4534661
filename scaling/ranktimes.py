"""Which host is slow: every rank's own times, gathered beside the training every few steps."""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from scaling import rundir
from scaling.attempt import Attempt
from scaling.sidegroup import Gathered, SideGroup
from scaling.steps import Step

SLOW = 1.25
"""A host is named when its slowest rank takes this many times the median rank's time."""


class RankTimes:
    """Step and data times by rank, in logs/ranks.jsonl, and on stderr the slowest host where it holds the others up.

    All ranks end a step together, so a rank's step time is that of its forward passes, in which it waits for no other
    (under fsdp it waits for their parts of the weights, which blurs the difference). Times on a GPU are between events
    on its stream, read when they have long passed.
    """

    def __init__(self, attempt: Attempt, side: SideGroup, device: torch.device, every: int) -> None:
        self.attempt = attempt
        self.side = side
        self.on_gpu = device.type == "cuda"
        self.every = every
        self.seconds = 0.0
        self.data_seconds = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.gathered: tuple[int, Gathered] | None = None
        self.hosts: list[str] = [socket.gethostname()]
        if side.group is not None:
            names: list[str | None] = [None] * dist.get_world_size()
            dist.all_gather_object(names, socket.gethostname(), group=side.group)
            self.hosts = [str(name) for name in names]

    @contextmanager
    def own_work(self) -> Iterator[None]:
        """Around a forward pass."""
        if self.side.group is None:
            yield
        elif self.on_gpu:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            yield
            pair[1].record()
            self.events.append(pair)
        else:
            before = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - before

    def add(self, step: Step) -> None:
        """A step is done; every `every` steps the times gathered go on their way, and those before them arrive."""
        if self.side.group is None:
            return
        self.data_seconds += step.data_seconds
        if step.number % self.every:
            return
        if self.gathered is not None:
            self._compare(*self.gathered)
        passed = [pair for pair in self.events if pair[1].query()]
        self.events = self.events[len(passed) :]
        self.seconds += sum(start.elapsed_time(end) for start, end in passed) / 1000.0
        values = torch.tensor([self.seconds, self.data_seconds], dtype=torch.float64) / self.every
        self.gathered = (step.number, self.side.gather(values))
        self.seconds = self.data_seconds = 0.0

    def _compare(self, step: int, gathered: Gathered) -> None:
        times = gathered.result()
        if not self.attempt.writes:
            return
        step_seconds, data_seconds = times[:, 0].tolist(), times[:, 1].tolist()
        host, ratio = slowest_host(self.hosts, times.sum(dim=1).tolist())
        row = {"step": step, "attempt": self.attempt.number, "slowest_host": host, "times_the_median": ratio}
        row |= {"step_seconds": step_seconds, "data_seconds": data_seconds}
        with (self.attempt.folder / rundir.LOGS / "ranks.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if ratio > SLOW:
            print(f"step {step}: slowest host {host}, {ratio:.2f} times the median rank", file=sys.stderr)


def slowest_host(hosts: list[str], seconds: list[float]) -> tuple[str, float]:
    """The host of the rank that takes longest, and how many times the median rank's time that is."""
    worst = max(range(len(seconds)), key=seconds.__getitem__)
    median = statistics.median_low(seconds)
    return hosts[worst], seconds[worst] / median if median else 1.0
