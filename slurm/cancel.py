"""Cancelling a study: marked first, so that no job that is just being requeued comes back to life."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from scaling.study.folders import mark_cancelled
from scaling.study.plan import Plan, run_state
from slurm.batches import CANCELLED, Batch, only_launch, read_batches
from slurm.launcher import recover
from slurm.queue import ControllerError, call, read_jobs

END_SECONDS: Final = 300.0
"""Jobs save before they end; Slurm kills those that do not."""


def cancel(plan: Plan, root: Path) -> list[str]:
    """Cancels every run that is neither completed nor failed, and returns them; their jobs have ended then.

    So have the jobs of runs that the study's file no longer has.
    """
    study = root / plan.study.name
    with only_launch(study):
        recover(study)
        batches = read_batches(study)
        batches = [
            batch for batch in batches if any(run_state(study / run) != "completed" for run in batch.runs.values())
        ]
        for batch in batches:
            (batch.folder / CANCELLED).touch()
        _end(batches)
        return mark_cancelled(plan, study)


def _end(batches: list[Batch]) -> None:
    """Cancels the jobs of the batches and waits until none of them is alive."""
    deadline = time.monotonic() + END_SECONDS
    if alive := _alive(batches):
        call("scancel", *alive)  # its exit status says nothing that the jobs do not: it is 1 for one that has ended
    while alive := _alive(batches):
        if time.monotonic() > deadline:
            raise ControllerError(f"jobs {', '.join(alive)} are still alive {END_SECONDS:.0f} s after scancel")
        time.sleep(1)


def _alive(batches: list[Batch]) -> list[str]:
    """Ids of the batches' arrays that have tasks left."""
    owners = {batch.job: batch for batch in batches if batch.job}
    arrays = {job.id.split("_")[0]: job.name for job in read_jobs(owners).values() if job.alive}
    return sorted(array for array, name in arrays.items() if owners[array].owns(name))
