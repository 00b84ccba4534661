"""The lines of metrics.jsonl: steps gathered over a logging interval. Nothing here touches the device."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from typing import TYPE_CHECKING

import torch

from scaling.cost import utilisation
from scaling.environment import device_name
from scaling.errors import UserError
from scaling.steps import Step
from scaling.terminal import StatusLine

if TYPE_CHECKING:
    from scaling.run import Run

HEARTBEAT_SECONDS = 5.0
"""status.json is written durably, which costs more than a small step: no more often than this."""


class StepLog:
    """Writes a line every `log_every` steps and at the last one, and keeps the heartbeat."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.steps: list[Step] = []
        self.beaten = 0.0
        self.refused = False
        self.line = StatusLine(run.steps)

    def add(self, step: Step) -> None:
        """A finished step; writes the line when one is due."""
        self.steps.append(step)
        run = self.run
        if step.number % run.config.train.log_every == 0 or step.number == run.steps:
            self._write()
            if time.monotonic() - self.beaten > HEARTBEAT_SECONDS:
                run.attempt.set_status("running", step=step.number)
                self.beaten = time.monotonic()

    def clear(self) -> None:
        """Forgets the interval under way: its steps were taken back."""
        self.steps.clear()

    def _write(self) -> None:
        run, steps, last = self.run, self.steps, self.steps[-1]
        config, rank = run.config, run.engine.rank
        seconds = statistics.fmean(step.seconds for step in steps)
        rate = config.train.global_batch / seconds
        row = {
            "stage": config.stage,
            "step": last.number,
            "images_seen": last.images_seen,
            "epoch": last.epoch,
            "loss": sum(step.loss for step in steps) / len(steps),
            "lr": last.lr,
            "grad_norm": last.norm,
            "step_seconds": seconds,
            "data_seconds": statistics.fmean(step.data_seconds for step in steps),
            "images_per_second": rate,
            "tokens_per_second": rate * run.cost.tokens_per_image,
            "model_flops_per_image": run.cost.flops_per_image,
            "mfu": self.utilisation(rate / rank.ranks),
            "memory_bytes": peak_memory(run.engine.device),
            "devices": rank.ranks,
            "nodes": rank.nodes,
            "micro_batch": run.micro_batch,
            "skipped_steps": last.skipped,
        }  # fmt: skip
        run.metrics.write(row)
        if run.attempt.writes:
            self.line.show(row)
        self.steps = []

    def utilisation(self, rate: float) -> float | None:
        """MFU at `rate` images per second and device; one above 100 % is refused: said once and left blank."""
        config, device = self.run.config, device_name(self.run.engine.device)
        try:
            return utilisation(self.run.cost.flops_per_image, rate, device, config.precision)
        except UserError as error:
            if not self.refused and self.run.attempt.writes:
                print(f"refused: {error}", file=sys.stderr)
            self.refused = True
            return None


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on a GPU; on a CPU the peak resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
