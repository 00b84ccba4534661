"""Cancelling a study: marked first, so that no job that is just being requeued comes back to life."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from scaling.study.folders import mark_cancelled
from scaling.study.plan import Plan, run_state
from slurm.batches import CANCELLED, newest, only_launch, read_batches
from slurm.launcher import recover
from slurm.queue import ControllerError, call, read_jobs

END_SECONDS: Final = 300.0
"""Jobs save before they end; Slurm kills those that do not."""


def cancel(plan: Plan, root: Path) -> list[str]:
    """Cancels every run that is neither completed nor failed, and returns them; their jobs have ended then."""
    study = root / plan.study.name
    with only_launch(study):
        recover(study)
        open_runs = [row.config.run for row in plan.rows if run_state(study / row.config.run) != "completed"]
        last = newest(read_batches(study))
        batches = {batch.folder: batch for batch, _ in (last[run] for run in open_runs if run in last)}
        for folder in batches:
            (folder / CANCELLED).touch()
        jobs = {batch.job for batch in batches.values() if batch.job}
        _end(jobs)
        return mark_cancelled(plan, study)


def _end(jobs: set[str]) -> None:
    """Cancels the jobs and waits until none of them is alive."""
    if not jobs:
        return
    deadline = time.monotonic() + END_SECONDS
    call("scancel", *sorted(jobs))  # its exit status says nothing that the jobs do not: it is 1 for one that has ended
    while any(job.alive for job in read_jobs(jobs).values()):
        if time.monotonic() > deadline:
            raise ControllerError(f"jobs {', '.join(sorted(jobs))} are still alive {END_SECONDS:.0f} s after scancel")
        time.sleep(1)
