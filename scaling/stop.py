"""Being asked to stop: by a signal or by the job's time limit, on any rank; all ranks then leave at the same place."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

EXIT_STOPPED = 85
"""Exit status of a rank that was asked to stop and has its state saved."""

ANOTHER_RANK = "another rank was asked to stop"

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):  # noqa: N818 - a request was followed, nothing went wrong
    """The run was asked to stop and everything it had done is committed."""


class StopRequest:
    """Listens for the stop signals and the time limit inside its block; the loop polls `requested`.

    Until `arm` is called nothing is unsaved (start-up, the first compile), so the process leaves at once with status
    85, after `before_leaving`, which records it. A thread listens, as the main thread may be inside a compiler or
    waiting for another rank, where Python runs no signal handler.
    """

    def __init__(self, grace: float) -> None:
        self.reason: str | None = None
        self.armed = False
        self.before_leaving: Callable[[str], None] | None = None
        self.deadline = _deadline(grace)

    def __enter__(self) -> Self:
        self._ears, self._mouth = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._earlier_fd = signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
        self._earlier = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        self._thread = threading.Thread(target=self._listen, name="stop", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._earlier_fd)
        os.close(self._mouth)  # ends the thread
        self._thread.join()
        os.close(self._ears)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def _listen(self) -> None:
        """Signals arrive as bytes; an empty read means that the block has ended."""
        while True:
            left = max(0.0, self.deadline - time.time()) if self.deadline is not None and not self.armed else None
            ready, _, _ = select.select([self._ears], [], [], left)
            heard = os.read(self._ears, 64) if ready else None
            if heard == b"":
                return
            for number in heard or b"":
                if number in SIGNALS:  # a child's end is heard here too
                    self.reason = signal.Signals(number).name
            if self.requested() and not self.armed:
                try:
                    if self.before_leaving is not None:
                        self.before_leaving(f"{self.reason} before the first step")
                finally:  # no other thread would end the process
                    os._exit(EXIT_STOPPED)

    def arm(self) -> None:
        """From here on there is something to save."""
        self.armed = True

    def requested(self) -> bool:
        """Whether a signal came or the time limit of the job is near."""
        if self.reason is None and self.deadline is not None and time.time() > self.deadline:
            self.reason = "time limit"
        return self.reason is not None


def _deadline(grace: float) -> float | None:
    """`grace` seconds before Slurm ends the job (SLURM_JOB_END_TIME, seconds since the epoch), None without one."""
    end = os.environ.get("SLURM_JOB_END_TIME")
    return float(end) - grace if end else None
