"""Where every run stands, from its folder and from Slurm together."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from scaling import rundir
from scaling.study.plan import Plan, run_state
from slurm.batches import Batch, newest, read_batches
from slurm.queue import ControllerError, Job, read_jobs

POLL_SECONDS: Final = 2.0
UNABLE: Final = ("failed", "blocked", "cancelled")
"""States of a parent that its children cannot begin after."""


@dataclass(frozen=True)
class Standing:
    """A run's state, and the job that it was last submitted in ("" before any)."""

    state: str
    job: str = ""
    reason: str = ""


def read_standings(plan: Plan, root: Path) -> dict[str, Standing]:
    """{run: standing} of the plan. Slurm is asked only where something was submitted."""
    study = root / plan.study.name
    last = newest(read_batches(study))
    ids = {row.config.run: _job_of(study / row.config.run, last.get(row.config.run)) for row in plan.rows}
    jobs = read_jobs(filter(None, ids.values()))
    standings: dict[str, Standing] = {}
    for row in plan.rows:  # parents stand before their children
        run = row.config.run
        batch, _ = last.get(run, (None, 0))
        job_id = ids[run]
        standing = _standing(study / run, batch, jobs.get(job_id), job_id)
        parent = standings.get(row.config.parent or "")
        standings[run] = standing if parent is None else below(parent, standing, jobs.get(job_id))
    return standings


def _job_of(run: Path, submitted: tuple[Batch, int] | None) -> str:
    """The job that a run was last submitted in; one that we did not submit is known by what it says while it runs."""
    if submitted is not None and submitted[0].job:
        return f"{submitted[0].job}_{submitted[1]}"
    status = rundir.read_json(run / rundir.STATUS) or {}
    return str(status.get("job_id") or "") if status.get("state") in ("running", "stopped") else ""


def with_states(plan: Plan, standings: dict[str, Standing]) -> Plan:
    """The plan with the states that Slurm knows better."""
    return replace(plan, rows=[replace(row, state=standings[row.config.run].state) for row in plan.rows])


def wait_for_end(plan: Plan, root: Path) -> dict[str, int]:
    """Returns when nothing is in the queue any more: how many runs ended in each state."""
    while True:
        try:
            states = [standing.state for standing in read_standings(plan, root).values()]
        except ControllerError:
            states = ["queued"]  # it may be back later
        if not {"queued", "running"} & set(states):
            return dict(Counter(states))
        time.sleep(POLL_SECONDS)


def combine(recorded: str, job: Job | None) -> str:
    """A run's state from what its folder says and from its last job (None: unknown to Slurm, long ended or never).

    Only the folder knows of completion, only Slurm of life: a folder that says running may have died with its node.
    """
    if recorded == "completed":
        return recorded
    if job is not None and job.alive:
        return "blocked" if job.blocked else ("queued" if job.state in ("PENDING", "REQUEUED") else "running")
    if recorded == "cancelled" or (job is not None and job.state == "CANCELLED" and recorded != "failed"):
        return "cancelled"
    if job is not None and recorded in ("running", "planned", "queued"):
        return "failed"
    return "stopped" if recorded in ("running", "queued") else recorded


def _standing(run: Path, batch: Batch | None, job: Job | None, job_id: str) -> Standing:
    state = combine(run_state(run), job)
    if batch is not None and batch.cancelled and state not in ("completed", "failed"):
        state = "cancelled"
    reason = str((rundir.read_json(run / rundir.STATUS) or {}).get("error") or "")
    if job is not None and state in ("failed", "queued"):
        reason = reason or " ".join(filter(None, (job.state, job.reason, *job.nodes)))
    return Standing(state, job_id, reason)


def below(parent: Standing, child: Standing, job: Job | None) -> Standing:
    """A child that has no job any more and whose parent will not complete is blocked: Slurm cancelled its job."""
    waits = job is None or not job.alive
    if waits and child.state not in ("completed", "failed", "running") and parent.state in UNABLE:
        return replace(child, state="blocked", reason=f"its parent {parent.state}")
    return child
