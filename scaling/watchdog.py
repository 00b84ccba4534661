"""No step within the limit: every rank that still can writes down its stacks, and the rank that holds the others up is
named, so that the job ends in minutes and not with its time limit.

The channel is the run folder, as it works while a rank, or the one that the others meet at, is frozen.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from scaling import rundir
from scaling.attempt import Attempt
from scaling.environment import Rank
from scaling.steps import StepClock
from scaling.terminal import say

EXIT_HUNG = 1
REPORT_AT, NAME_AT = 0.7, 0.95
"""Parts of the limit after which a rank writes its report, and reads those of the others."""


class Watchdog:
    """A thread that counts its ticks since the last beat: time in which the whole process was frozen does not count.

    The stacks are in logs/hang-<attempt>/rank-<rank>.txt, below a line with how far the rank had come.
    """

    def __init__(self, attempt: Attempt, rank: Rank, clock: StepClock, limit: float) -> None:
        self.attempt = attempt
        self.rank = rank
        self.clock = clock
        self.limit = limit
        self.beats = 0
        self.paused = False
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if limit:
            self.thread.start()

    def beat(self) -> None:
        """Another step, or batch of an evaluation, is done; all ranks count the same ones."""
        self.beats += 1
        self.paused = False

    def pause(self) -> None:
        """What comes next has no known length, until the next beat."""
        self.paused = True

    def close(self) -> None:
        """Training and evaluation are over."""
        self.ended.set()

    @property
    def folder(self) -> Path:
        """Where this attempt's ranks report."""
        return self.attempt.folder / rundir.LOGS / f"hang-{self.attempt.number}"

    def _watch(self) -> None:
        tick = min(1.0, self.limit / 20)
        seen, silent, reported = self.beats, 0.0, False
        while not self.ended.wait(tick):
            if self.beats != seen or self.paused:
                seen, silent, reported = self.beats, 0.0, False
                continue
            silent += tick
            if silent >= REPORT_AT * self.limit and not reported:
                self._report()
                reported = True
            if silent >= NAME_AT * self.limit:
                self._leave()

    def _progress(self) -> dict[str, object]:
        return {"host": socket.gethostname(), "beats": self.beats, "waits_for_data": self.clock.fetching}

    def _report(self) -> None:
        """How far this rank has come, and its stacks; on stderr where the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"rank-{self.rank.rank}.txt").open("w", encoding="utf-8") as file:
                file.write(json.dumps(self._progress()) + "\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as unwritten:
            say(f"rank {self.rank.rank} could not report that it hangs: {unwritten}")
            faulthandler.dump_traceback(all_threads=True)

    def _leave(self) -> None:
        """The first of the ranks that still run has the last word; all of them leave, whatever can be written."""
        try:
            reports = read_reports(self.folder) | {self.rank.rank: self._progress()}
            culprit = name_culprit(reports, self.rank.ranks)
            message = f"no step within {self.limit:g} s: {culprit}; stacks in {self.folder}"
            if self.rank.rank == min(reports):
                say(message)
                self.attempt.last_word("failed", message)
        finally:
            os._exit(EXIT_HUNG)


def read_reports(folder: Path) -> dict[int, dict[str, object]]:
    """{rank: how far it had come} of the ranks that reported; a full disk leaves reports that are none."""
    reports = {}
    for path in folder.glob("rank-*.txt"):
        with suppress(OSError, ValueError), path.open(encoding="utf-8") as file:
            reports[int(path.stem.removeprefix("rank-"))] = json.loads(file.readline())
    return reports


def name_culprit(reports: dict[int, dict[str, object]], ranks: int) -> str:
    """Ranks that do not even report; else those that are behind the others; else those that wait for data."""
    missing = sorted(set(range(ranks)) - set(reports))
    if missing:
        return f"rank {', '.join(map(str, missing))} does not answer (frozen, its host gone, or no room for its report)"
    beats = {rank: int(str(report["beats"])) for rank, report in reports.items()}
    behind = [rank for rank in sorted(beats) if beats[rank] < max(beats.values())]
    waiting = [rank for rank in sorted(reports) if reports[rank]["waits_for_data"]]
    for found, what in ((behind, "is behind the others"), (waiting, "waits for data")):
        if found and (len(found) < ranks or ranks == 1):
            hosts = ", ".join(f"{rank} on {reports[rank]['host']}" for rank in found)
            return f"rank {hosts} {what}"
    return "all ranks wait at the same place"
