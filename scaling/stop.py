"""Being asked to stop: signals set a flag that the loop polls, so that state is saved between two steps."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

EXIT_STOPPED = 85
"""Exit status of a rank that was asked to stop and has its state saved."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):  # noqa: N818 - a request was followed, nothing went wrong
    """The run was asked to stop and everything it had done is committed."""


class StopRequest:
    """Listens for the stop signals from construction on.

    Until `arm` is called nothing is unsaved (start-up, compile), so the process leaves at once with status 85, after
    `before_leaving`, which records it.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.armed = False
        self.before_leaving: Callable[[str], None] | None = None
        self.deadline = _deadline()
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if not self.armed:
            if self.before_leaving is not None:
                self.before_leaving(f"{self.reason} before the first step")
            os._exit(EXIT_STOPPED)

    def arm(self) -> None:
        """From here on there is something to save."""
        self.armed = True

    def requested(self) -> bool:
        """Whether a signal came or the time limit of the job is near."""
        if self.reason is None and self.deadline is not None and time.time() > self.deadline:
            self.reason = "time limit"
        return self.reason is not None


def _deadline() -> float | None:
    """Two minutes before Slurm ends the job (SLURM_JOB_END_TIME, seconds since the epoch), None without one."""
    end = os.environ.get("SLURM_JOB_END_TIME")
    return float(end) - 120.0 if end else None
