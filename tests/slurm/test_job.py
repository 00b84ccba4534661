"""What the job decides when its step has ended: from status.json and checkpoints, never from an exit status."""

import time
from pathlib import Path

import pytest

from scaling import rundir
from scaling.attempt import Attempt, write_status
from slurm import history
from slurm.batches import JOB, Batch, write_batch
from slurm.job import Supervisor, main, meeting_point


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """That of job 7_3, whose run has begun its first attempt."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    found = Supervisor(tmp_path)
    Attempt.claim(tmp_path).set_status("running")
    return found


def save(run: Path, step: int) -> None:
    (run / rundir.CHECKPOINTS / f"step-{step:08d}").mkdir(parents=True)


def state(run: Path) -> object:
    return (rundir.read_json(run / rundir.STATUS) or {})["state"]


def test_a_run_that_stopped_and_saved_in_this_job_wants_another(supervisor: Supervisor) -> None:
    save(supervisor.run, 5)
    write_status(supervisor.run, "stopped", attempt=1)
    assert supervisor.wants_more()


def test_a_stop_recorded_by_another_job_counts_for_nothing(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(supervisor.run, 5)
    write_status(supervisor.run, "stopped", attempt=1)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    assert not supervisor.wants_more()


def test_a_stop_that_nobody_asked_for_and_that_saved_nothing_is_a_failure(supervisor: Supervisor) -> None:
    write_status(supervisor.run, "stopped", attempt=1, error="SIGTERM before the first step")
    assert not supervisor.wants_more()
    supervisor.record_death()
    assert state(supervisor.run) == "failed"


def test_a_failure_is_the_runs_own_only_unasked(supervisor: Supervisor) -> None:
    write_status(supervisor.run, "failed", attempt=1, error="RuntimeError: a peer has left")
    assert not supervisor.wants_more()
    supervisor.record_death()
    assert (rundir.read_json(supervisor.run / rundir.STATUS) or {})["error"] == "RuntimeError: a peer has left"
    supervisor.asked = True
    assert supervisor.wants_more()


def test_a_run_that_died_without_a_word_has_failed(supervisor: Supervisor) -> None:
    supervisor.record_death()
    assert state(supervisor.run) == "failed"


def test_of_two_jobs_of_one_batch_the_one_that_is_noted_does_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A controller that is slow to answer may get the batch a second time."""
    batch = Batch(tmp_path / "tiny" / "slurm" / "batch-0001", {3: "run"})
    write_batch(batch, "#!/bin/bash\n")
    (batch.folder / JOB).write_text("7\n")
    for name, value in {"ARRAY_JOB_ID": "8", "ARRAY_TASK_ID": "3", "JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert main([str(batch.folder), "false"]) == 1
    assert "job 7 does the work" in capsys.readouterr().out
    assert not (tmp_path / "tiny" / "run").exists()


def test_what_slurm_ended_may_still_live_and_keeps_its_step_numbers(supervisor: Supervisor) -> None:
    """Of the starts before: a job's own that left by itself, one that Slurm ended, one cut off, another job's."""
    run = supervisor.run
    history.end(run, supervisor.start, "requeued", "")
    history.end(run, history.begin(run, "7_3", 1, ["n1"]), "left to Slurm", "")
    history.begin(run, "7_3", 2, ["n1"])
    history.begin(run, "6_3", 0, ["n1"])
    assert Supervisor(run).interrupted == 2


@pytest.mark.parametrize(("left", "saved", "stuck"), [(100, False, True), (100, True, False), (3600, False, False)])
def test_a_time_limit_before_anything_was_saved_is_too_short(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, left: float, saved: bool, stuck: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + left))
    if saved:
        save(supervisor.run, 5)
    assert supervisor.stuck() is stuck


def test_ranks_meet_on_the_first_node_at_a_port_of_their_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[07-09],cpu1")
    ports = set()
    for job in range(100, 200):
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        found = meeting_point()
        assert found["MASTER_ADDR"] == "gpu07"
        ports.add(int(found["MASTER_PORT"]))
    assert len(ports) == 100
    assert 1024 < min(ports) <= max(ports) < 32768
