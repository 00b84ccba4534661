"""What a run says: its live line (loss, images a second, MFU, data stall, time left), and what it cannot write down.

One line on a terminal, few in a log.
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from typing import Any, TextIO

LIVE_SECONDS, LOG_SECONDS = 0.2, 30.0
"""No line sooner after the last than this: where somebody watches, and where a file does."""


class StatusLine:
    """Shows the newest row of metrics.jsonl, by rank 0."""

    def __init__(self, steps: int, stream: TextIO = sys.stdout) -> None:
        self.steps = steps
        self.stream = stream
        self.live = stream.isatty() and "SLURM_STEP_ID" not in os.environ  # srun gives its tasks a terminal, to a file
        self.shown = -math.inf

    def show(self, row: dict[str, Any]) -> None:
        """Replaces the line, or adds one to a log, unless the last is too young; the last step is always shown."""
        now, last = time.monotonic(), row["step"] == self.steps
        if now - self.shown < (LIVE_SECONDS if self.live else LOG_SECONDS) and not last:
            return
        self.shown = now
        text = line(row, self.steps)
        if self.live:
            text = f"\r\x1b[K{text}" + ("\n" if last else "")
        else:
            text += "\n"
        self.stream.write(text)
        self.stream.flush()


def say(text: str) -> None:
    """A line on stderr, from a thread that must go on whatever happens: the log may be on the disk that is full."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def line(row: dict[str, Any], steps: int) -> str:
    """The text of a row of metrics.jsonl; what is unknown is left out."""
    left = (steps - row["step"]) * row["step_seconds"]
    parts = [
        f"{row['stage']} {row['step']}/{steps}",
        f"loss {row['loss']:.4f}",
        f"{row['images_per_second']:.0f} images/s",
        f"MFU {row['mfu']:.0%}" if row["mfu"] is not None else "",
        f"data stall {row['data_seconds'] / row['step_seconds']:.0%}",
        f"{row['skipped_steps']} skipped" if row["skipped_steps"] else "",
        f"{duration(left)} left",
    ]
    return "  ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """42 s, 3:07 or 5:03:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
