"""Where every run stands, from its folder and from Slurm together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from scaling import rundir
from scaling.attempt import lives_here
from scaling.study.plan import Plan, run_state
from slurm.batches import Batch, newest, read_batches
from slurm.queue import ControllerError, Job, read_jobs

POLL_SECONDS: Final = 10.0
"""A controller serves many; each question costs it time."""
UNABLE: Final = ("failed", "blocked", "cancelled")
"""States of a parent that its children cannot begin after."""


@dataclass(frozen=True)
class Standing:
    """A run's state, and its last job ("" before any, and when Slurm has forgotten it)."""

    state: str
    job: str = ""
    reason: str = ""


def read_standings(plan: Plan, root: Path) -> dict[str, Standing]:
    """{run: standing} of the plan. Slurm is asked of what it was given and is not completed."""
    study = root / plan.study.name
    batches = read_batches(study)
    last = newest(batches)
    runs = [row.config.run for row in plan.rows if run_state(study / row.config.run) != "completed"]
    submitted = {run: f"{last[run][0].job}_{last[run][1]}" for run in runs if run in last and last[run][0].job}
    others = _jobs_of_the_user(study, runs, {batch.job for batch in batches})
    jobs = read_jobs([*submitted.values(), *others.values()])
    standings: dict[str, Standing] = {}
    for row in plan.rows:  # parents stand before their children
        run = row.config.run
        batch, _ = last.get(run, (None, 0))
        job, other = jobs.get(submitted.get(run, "")), jobs.get(others.get(run, ""))
        if job is not None and batch is not None and not batch.owns(job.name):
            job = None
        if other is not None and (job is None or (other.alive and not job.alive)):
            job = other
        standing = _standing(study / run, batch, job)
        parent = standings.get(row.config.parent or "")
        standings[run] = standing if parent is None else below(parent, standing, job)
    return standings


def _jobs_of_the_user(study: Path, runs: list[str], ours: Container[str | None]) -> dict[str, str]:
    """{run: job} where one that we did not submit has the run, by what its folder says while it runs."""
    found = {}
    for run in runs:
        status = rundir.read_json(study / run / rundir.STATUS) or {}
        job = str(status.get("job_id") or "")
        if job and status.get("state") in ("running", "stopped") and job.split("_")[0] not in ours:
            found[run] = job
    return found


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
    if recorded == "cancelled" or (job is not None and job.cancelled and recorded != "failed"):
        return "cancelled"
    if job is not None and job.state != "CANCELLED" and recorded in ("running", "planned", "queued"):
        return "failed"
    return "stopped" if recorded in ("running", "queued") else recorded


def _standing(run: Path, batch: Batch | None, job: Job | None) -> Standing:
    state = run_state(run)
    if not (state == "running" and job is None and lives_here(run)):  # started by hand, where Slurm knows nothing of it
        state = combine(state, job)
    if batch is not None and batch.cancelled and state not in ("completed", "failed", "running"):
        state = "cancelled"
    reason = str((rundir.read_json(run / rundir.STATUS) or {}).get("error") or "")
    if job is not None and state in ("failed", "queued"):
        reason = reason or " ".join(filter(None, (job.state, job.reason, *job.nodes)))
    return Standing(state, job.id if job is not None else "", reason)


def below(parent: Standing, child: Standing, job: Job | None) -> Standing:
    """A child that has no job any more and whose parent will not complete is blocked: Slurm cancelled its job."""
    waits = job is None or not job.alive
    if waits and child.state not in ("completed", "failed", "running") and parent.state in UNABLE:
        return replace(child, state="blocked", reason=f"its parent {parent.state}")
    return child
