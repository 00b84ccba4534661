"""Attempts at a run: each is claimed once, and only the highest may write.

A paused or partitioned old attempt that wakes up after its replacement started must change nothing, so every commit,
flush and summary asks `check` first.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from scaling import files, rundir
from scaling.terminal import say

ORIGIN = "from step "


class Superseded(RuntimeError):  # noqa: N818 - it is a fact about this attempt, not a fault
    """A newer attempt has taken the run folder over."""


def highest(folder: Path) -> int:
    """The number of the newest attempt, 0 when there is none."""
    return max((int(entry.name) for entry in _claims(folder)), default=0)


def origins(folder: Path) -> dict[int, int]:
    """{attempt: the step that it went on from}, of those that came so far."""
    found = {}
    for entry in _claims(folder):
        step = entry.read_text(encoding="utf-8").partition(f"\n{ORIGIN}")[2].strip()
        if step.isdecimal():  # a full disk may have torn it
            found[int(entry.name)] = int(step)
    return found


def _claims(folder: Path) -> list[Path]:
    """The files attempts/N; not what editors, copies and network file systems put beside them."""
    attempts = folder / rundir.ATTEMPTS
    return [entry for entry in attempts.iterdir() if entry.name.isdecimal()] if attempts.is_dir() else []


@dataclass
class Attempt:
    """A claimed attempt at the run in `folder`. `writes` is true on rank 0 alone, which keeps the folder's records.

    A rollback is a new attempt in the same process, under a new number.
    """

    folder: Path
    number: int
    writes: bool = True
    speaking: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def claim(cls, folder: Path) -> Attempt:
        """Takes the next number by exclusive creation: two claimants never get the same one."""
        attempts = folder / rundir.ATTEMPTS
        attempts.mkdir(parents=True, exist_ok=True)
        while True:
            number = highest(folder) + 1
            try:
                descriptor = os.open(attempts / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                continue
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{socket.gethostname()} {os.getpid()} {job_id() or '-'}\n")
            return cls(folder, number)

    def goes_on_from(self, step: int) -> None:
        """Notes, in a second line beside who claimed it, the step whose state this attempt starts with."""
        if self.writes:
            with (self.folder / rundir.ATTEMPTS / str(self.number)).open("a", encoding="utf-8") as file:
                file.write(f"{ORIGIN}{step}\n")

    @property
    def superseded(self) -> bool:
        """Whether a newer attempt exists."""
        return highest(self.folder) > self.number

    def check(self) -> None:
        """Raises Superseded when a newer attempt exists."""
        if self.superseded:
            raise Superseded(f"attempt {self.number} of {self.folder.name} stops: a newer attempt has taken over")

    def set_status(self, state: str, *, step: int | None = None, error: str | None = None) -> None:
        """Replaces status.json; the heartbeat is now (seconds since the epoch)."""
        assert state in rundir.STATES, state
        if not self.writes:
            return
        self.check()
        with self.speaking:
            write_status(self.folder, state, attempt=self.number, step=step, error=error)

    def last_word(self, state: str, error: str) -> None:
        """The last status of a process that is about to leave, from any rank and thread: no other may follow it.

        Where the disk refuses it, that is said on stderr: the process leaves all the same.
        """
        self.speaking.acquire()  # for good
        try:
            if not self.superseded:
                write_status(self.folder, state, attempt=self.number, error=error)
        except OSError as unwritten:
            say(f"{rundir.STATUS} could not be written ({state}, {error}): {unwritten}")


def write_status(
    folder: Path, state: str, *, attempt: int = 0, step: int | None = None, error: str | None = None
) -> None:
    """Replaces the status.json of a run folder."""
    status = {
        "state": state,
        "attempt": attempt,
        "job_id": job_id(),
        "host": socket.gethostname(),
        "heartbeat": time.time(),
        "step": step,
        "error": error,
    }
    files.write_json(folder / rundir.STATUS, status)


def mark(folder: Path, state: str, *, error: str | None = None) -> None:
    """Gives a run that no process works at another state; how often it was tried and how far it came stays."""
    status = rundir.read_json(folder / rundir.STATUS) or {}
    write_status(folder, state, attempt=status.get("attempt") or 0, step=status.get("step"), error=error)


def lives_here(folder: Path) -> bool | None:
    """Whether the process that has a run is alive; None where it is no process of this machine outside of Slurm."""
    host, pid, job = _process(folder) or ("", "", "")
    return Path(f"/proc/{pid}").exists() if host == socket.gethostname() and job == "-" else None


def at_work(folder: Path, ended: int = 0) -> bool:
    """Whether the process that status.json calls running may be at work: nothing here shows that it is gone.

    That shows outside Slurm, on the machine where it ran. `ended` is a process of this machine that is known to be.
    """
    process = _process(folder)
    if process is None or (rundir.read_json(folder / rundir.STATUS) or {}).get("state") != "running":
        return False  # who is at work has claimed an attempt
    return process[:2] != (socket.gethostname(), str(ended)) and lives_here(folder) is not False


def _process(folder: Path) -> tuple[str, str, str] | None:
    """(host, process, job or "-") that claimed the attempt of status.json."""
    attempt = (rundir.read_json(folder / rundir.STATUS) or {}).get("attempt")
    try:
        host, pid, job = (folder / rundir.ATTEMPTS / str(attempt)).read_text(encoding="utf-8").split()[:3]
    except (OSError, ValueError):
        return None
    return host, pid, job


def job_id() -> str | None:
    """Slurm's id of this job, ARRAY_TASK for a task of an array; None elsewhere."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
