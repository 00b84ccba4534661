"""A run's state from its folder and from Slurm: only the folder knows of completion, only Slurm of life."""

import pytest

from slurm.queue import Job
from slurm.states import Standing, below, combine


def job(state: str, reason: str = "") -> Job:
    return Job("7_0", state, reason, (), 0, 0, 0, "tiny-0001-12345678")


@pytest.mark.parametrize(
    ("recorded", "known", "state"),
    [
        ("planned", None, "planned"),
        ("planned", job("PENDING"), "queued"),
        ("stopped", job("PENDING"), "queued"),  # requeued
        ("failed", job("PENDING"), "queued"),  # retried
        ("cancelled", job("PENDING"), "queued"),  # retried
        ("planned", job("PENDING", "DependencyNeverSatisfied"), "blocked"),
        ("planned", job("RUNNING"), "running"),
        ("running", job("COMPLETING"), "running"),
        ("completed", job("RUNNING"), "completed"),
        ("completed", job("NODE_FAIL"), "completed"),  # whatever the exit says
        ("running", job("NODE_FAIL"), "failed"),
        ("planned", job("CANCELLED", "DependencyNeverSatisfied"), "planned"),  # by Slurm, as its parent ended early
        ("running", job("COMPLETED"), "failed"),  # no summary: an exit status of 0 counts for nothing
        ("running", job("CANCELLED"), "cancelled"),
        ("stopped", job("CANCELLED"), "cancelled"),
        ("failed", job("CANCELLED"), "failed"),
        ("stopped", job("PREEMPTED"), "stopped"),
        ("running", None, "stopped"),  # Slurm has forgotten a job that ended without a word
        ("cancelled", None, "cancelled"),
    ],
)
def test_states(recorded: str, known: Job | None, state: str) -> None:
    assert combine(recorded, known) == state


def test_children_of_a_failed_parent_are_blocked_once_slurm_has_cancelled_their_jobs() -> None:
    failed = Standing("failed", "7_0")
    assert below(failed, Standing("cancelled", "8_0"), job("CANCELLED")).state == "blocked"
    assert below(failed, Standing("planned"), None).state == "blocked"
    assert below(failed, Standing("completed", "8_0"), job("COMPLETED")).state == "completed"
    assert below(Standing("completed"), Standing("cancelled", "8_0"), job("CANCELLED")).state == "cancelled"
