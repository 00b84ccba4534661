"""What was submitted: one folder a call of sbatch, under <study>/slurm/, written before the call.

    <study>/slurm/batch-0001/runs.json   {task of the array: run}
                             script.sh   what sbatch got
                             job         Slurm's id of the array; missing when the launch was cut off around the call
                             emitted     where `launch --emit` wrote the script; a user submits it, not we
                             cancelled   its runs are not wanted any more: a job that finds this does nothing
                             0.log       what the job itself says (a run's own output is in its logs/)
    <study>/slurm/launches/N             claimed by exclusive creation; says "ended" when that launch is through

A job reads its run from its batch's folder, so that renaming the folder takes the work from a job nobody knows of.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaling import files
from scaling.errors import UserError

FOLDER: Final = "slurm"
RUNS: Final = "runs.json"
SCRIPT: Final = "script.sh"
JOB: Final = "job"
CANCELLED: Final = "cancelled"
EMITTED: Final = "emitted"
DROPPED: Final = ".dropped"
ENDED: Final = "ended\n"
GRACE: Final = "ARMSCALE_GRACE"
"""Tells a job how long before its end it is asked to stop, in seconds."""


@dataclass(frozen=True)
class Batch:
    """One array: its folder and the run of each of its tasks."""

    folder: Path
    runs: dict[int, str]

    @property
    def job(self) -> str | None:
        """Slurm's id of the array; None before sbatch has told it."""
        path = self.folder / JOB
        return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None

    @property
    def cancelled(self) -> bool:
        return (self.folder / CANCELLED).exists()

    @property
    def emitted(self) -> bool:
        return (self.folder / EMITTED).exists()

    def owns(self, job: str) -> bool:
        """Whether a job called `job` that has this batch's id is its own; who edits emitted files may rename it."""
        return self.emitted or job == self.name

    @property
    def name(self) -> str:
        """The job's name: by it a job is found whose id was never noted, so it is unique to this very folder."""
        place = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:8]
        return f"{self.folder.parents[1].name}-{self.folder.name.removeprefix('batch-')}-{place}"


def read_batches(study: Path) -> list[Batch]:
    """All batches of the study, oldest first."""
    folders = sorted(path for path in (study / FOLDER).glob("batch-*") if path.suffix != DROPPED)
    return [read_batch(folder) for folder in folders if (folder / RUNS).is_file()]


def read_batch(folder: Path) -> Batch:
    """The batch in `folder`; FileNotFoundError where it was dropped."""
    runs = json.loads((folder / RUNS).read_text(encoding="utf-8"))
    return Batch(folder, {int(task): run for task, run in runs.items()})


def next_batches(study: Path) -> Iterator[Path]:
    """Folders for new batches, in order; none of them is created."""
    taken = [int(path.name.split("-")[1].removesuffix(DROPPED)) for path in (study / FOLDER).glob("batch-*")]
    number = max(taken, default=0)
    while True:
        number += 1
        yield study / FOLDER / f"batch-{number:04d}"


def write_batch(batch: Batch, script: str) -> None:
    """Notes what is about to be submitted."""
    files.write_text(batch.folder / SCRIPT, script)
    files.write_json(batch.folder / RUNS, batch.runs)


def drop(batch: Batch) -> None:
    """Takes a batch back that Slurm never got; should it have, its jobs find no work."""
    batch.folder.rename(batch.folder.with_name(batch.folder.name + DROPPED))


def overtake(study: Path, runs: Iterable[str]) -> None:
    """Takes emitted batches back that nobody has submitted, where other batches are about to have runs of theirs."""
    for batch in read_batches(study):
        if batch.emitted and batch.job is None and not set(runs).isdisjoint(batch.runs.values()):
            drop(batch)


def newest(batches: list[Batch]) -> dict[str, tuple[Batch, int]]:
    """{run: (the last batch that it was submitted in, its task there)}."""
    return {run: (batch, task) for batch in batches for task, run in batch.runs.items()}


@contextmanager
def only_launch(study: Path) -> Iterator[None]:
    """One launch of a study at a time, on whatever host. UserError where another is at work.

    A launch that was killed on this host is seen to be dead, and the next number is claimed; of two that see it only
    one creates the file.
    """
    folder = study / FOLDER / "launches"
    folder.mkdir(parents=True, exist_ok=True)
    last = max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0)
    if last:
        _require_through(folder / str(last))
    claim = folder / str(last + 1)
    try:
        descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        raise _busy(claim, "another launch was a moment faster") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{socket.gethostname()} {os.getpid()}\n")
    try:
        yield
    finally:
        files.write_text(claim, ENDED)


def _require_through(claim: Path) -> None:
    text = claim.read_text(encoding="utf-8")
    if text == ENDED:
        return
    host, _, pid = text.strip().partition(" ")
    if not pid or host != socket.gethostname() or Path(f"/proc/{pid}").exists():
        raise _busy(claim, f"process {pid} on {host} is at it")


def _busy(claim: Path, who: str) -> UserError:
    study = claim.parents[2].name
    return UserError("STUDY", study, f"a study that nobody is launching; if that launch is dead, remove {claim}", who)
