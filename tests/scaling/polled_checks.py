"""Two ranks with unequal numbers of evaluation batches; torchrun starts this file, and any failure ends it with 1."""

import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

from scaling.environment import Rank
from scaling.run import Run
from scaling.sidegroup import SideGroup
from scaling.steps import StepClock
from scaling.stop import Stopped, StopRequest
from scaling.watchdog import Watchdog

BATCHES = (5, 9)


def taken(stop: StopRequest, rank: Rank, asked_after: int | None) -> tuple[int, bool]:
    """Batches that this rank was given, and whether it was stopped; rank 1 is sent a signal after some of them."""
    watchdog = Watchdog(cast(Any, None), rank, StepClock(), 0.0)
    run = cast(Run, SimpleNamespace(side=SideGroup(), stop=stop, watchdog=watchdog))
    count = 0
    try:
        for _ in Run.polled(run, iter(range(BATCHES[rank.rank]))):
            count += 1
            if rank.rank == 1 and count == asked_after:
                os.kill(os.getpid(), signal.SIGUSR2)
                while not stop.requested():
                    time.sleep(0.001)
    except Stopped:
        return count, True
    return count, False


if __name__ == "__main__":
    rank = Rank.from_environment()
    rank.join()
    with StopRequest(120.0) as stop:
        stop.arm()
        assert taken(stop, rank, None) == (BATCHES[rank.rank], False)
    for asked_after in (3, 7):  # while both have batches, and when rank 0 has none left
        with StopRequest(120.0) as stop:
            stop.arm()
            assert taken(stop, rank, asked_after) == (min(asked_after, BATCHES[rank.rank]), True)
    rank.leave()
    sys.exit(0)
