"""The job, as the batch process on the first node: starts one task a rank, passes stop signals on, and decides
whether the job comes again.

    python -m slurm.job <study>/slurm/batch-0001 srun ... python -m scaling.cli run     called by the sbatch script

The command gets the run's config.yaml behind it. It goes by status.json, never by an exit code, and asks for the job
again only while Slurm counts it as running: a job that was cancelled, or that Slurm requeues by itself (preemption,
failed node, scontrol requeue), has left that state. Its own exit status says only whether the run is completed, which
is what children wait for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

from scaling import rundir
from scaling.attempt import job_id, write_status
from scaling.errors import UserError
from scaling.study.failures import RUN_LOG, headline
from slurm import history
from slurm.batches import GRACE, Batch, read_batch
from slurm.history import Start
from slurm.queue import ControllerError, expand_hosts, read_jobs

ASK_AGAIN_SECONDS: Final = 5.0
EARLY_SECONDS: Final = 80.0
"""Slurm sends the signal of the time limit up to a minute early."""
PROBE_SECONDS: Final = 60.0
NOTICE_SECONDS: Final = 900.0
CONTROLLER_TRIES: Final = 10
STEPS_A_START: Final = 2
"""The run's own, and the probe of the nodes after it."""

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Supervisor:
    """One start of the job: the run's step, and whether it was asked to stop."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.asked = False
        self.newest = _newest_checkpoint(run)
        own, nodes = job_id(), expand_hosts(os.environ["SLURM_JOB_NODELIST"])
        assert own is not None
        earlier = [start for start in history.read_starts(run) if start.job == own]
        self.interrupted = sum(start.outcome != "requeued" for start in earlier)
        self.start = history.begin(run, own, int(os.environ.get("SLURM_RESTART_COUNT", "0")), nodes)

    def listen(self) -> None:
        """From here on a signal is a request that is passed on, not the end of the job."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True

    def number_steps(self) -> None:
        """Spends the step numbers of starts that Slurm ended, as a requeued job counts its steps from 0 again.

        What is left of such a start may only be frozen with its node. Once awake its srun learns of the node's failure
        and has its step ended by the number, which must not be the number of ours.
        """
        for _ in range(STEPS_A_START * self.interrupted):
            _answers("--nodes=1", "--ntasks=1")

    def carry_out(self, command: list[str]) -> None:
        """Runs the step to its end. A stop request is repeated, as ranks that still import would not hear it once."""
        with (self.run / rundir.LOGS / RUN_LOG).open("ab") as log:
            log.write(headline(f"job {self.start.job}, restart {self.start.restart}, on {' '.join(self.start.nodes)}"))
            log.flush()
            step = subprocess.Popen(
                [*command, str(self.run / rundir.CONFIG)],
                env=os.environ | meeting_point(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            asked_at = 0.0
            while step.poll() is None:
                if self.asked and time.monotonic() > asked_at + ASK_AGAIN_SECONDS:
                    asked_at = time.monotonic()
                    step.send_signal(signal.SIGUSR2)
                time.sleep(0.1)

    def wants_more(self) -> bool:
        """Whether the run, not completed, is to go on in another job: it saved and left, or was asked to.

        A failure of a rank that was asked to stop is not the run's: others may have left before it. What really fails
        does so again, unasked. A stop that nobody asked for and that saved nothing is such a failure: srun ends rank 0
        by a signal when another rank fails.
        """
        status = rundir.read_json(self.run / rundir.STATUS) or {}
        stopped = status.get("state") == "stopped" and status.get("job_id") == job_id()
        return self.asked or (stopped and _newest_checkpoint(self.run) != self.newest)

    def stuck(self) -> bool:
        """Whether the time limit came before anything was saved: the next job would get no further."""
        end = os.environ.get("SLURM_JOB_END_TIME")
        near_end = end is not None and time.time() > float(end) - float(os.environ.get(GRACE, "120")) - EARLY_SECONDS
        return near_end and _newest_checkpoint(self.run) == self.newest

    def record_death(self) -> None:
        """A run that ended without a word in this job has failed."""
        status = rundir.read_json(self.run / rundir.STATUS) or {}
        if not history.is_newest(self.run, self.start):
            return
        silent = status.get("state") in ("running", "stopped") and status.get("job_id") == job_id()
        if silent or status.get("state") in ("planned", "queued"):
            error = f"its ranks ended without a word; see {rundir.LOGS}/run.log"
            write_status(self.run, "failed", attempt=int(status.get("attempt") or 0), error=error)


def main(arguments: list[str]) -> int:
    """Exit status 0 exactly when the run is completed."""
    folder, *command = arguments
    try:
        batch = read_batch(Path(folder))
    except FileNotFoundError:
        print("this batch was dropped: its runs are submitted by another")
        return 1
    run = batch.folder.parents[1] / batch.runs[int(os.environ["SLURM_ARRAY_TASK_ID"])]
    print(f"{job_id()}: {run.name} on {os.environ['SLURM_JOB_NODELIST']}", flush=True)
    if batch.cancelled:
        print("cancelled")
        return 1
    if not batch.emitted and batch.job not in (None, os.environ["SLURM_ARRAY_JOB_ID"]):
        print(f"submitted twice, as Slurm's answer to the first time got lost: job {batch.job} does the work")
        return 1
    if not completed(run):
        supervisor = Supervisor(run)
        supervisor.listen()
        supervisor.number_steps()
        supervisor.carry_out(command)
        outcome = decide(run, supervisor, batch)
        if history.is_newest(run, supervisor.start):
            status = rundir.read_json(run / rundir.STATUS) or {}
            history.end(run, supervisor.start, outcome, str(status.get("error") or ""))
            print(outcome, flush=True)
        if outcome == "requeued":
            requeue()
    return 0 if completed(run) else 1


def decide(run: Path, supervisor: Supervisor, batch: Batch) -> str:
    """What becomes of the job whose step has ended."""
    if completed(run):
        return "completed"
    if supervisor.wants_more() or lost_a_node(supervisor.start):
        return come_again(run, supervisor, cancelled=batch.cancelled)
    supervisor.record_death()
    return "failed"


def completed(run: Path) -> bool:
    """A run is completed when its summary is written, whatever an exit status says."""
    return (run / rundir.SUMMARY).is_file()


def lost_a_node(start: Start) -> bool:
    """Whether a node of this job no longer answers, which the other ranks see as an error of their own.

    Slurm notices later (SlurmdTimeout, five minutes by default) and then requeues the job itself, without that node.
    """
    nodes = os.environ["SLURM_JOB_NUM_NODES"]
    if nodes == "1":
        return False
    answers = _answers(f"--nodes={nodes}", f"--ntasks={nodes}")
    if not answers:
        print("a node does not answer; waiting for Slurm to notice", flush=True)
        deadline = time.monotonic() + NOTICE_SECONDS
        while time.monotonic() < deadline and _own_state(start) == "RUNNING":
            time.sleep(ASK_AGAIN_SECONDS)
    return not answers


def _answers(*where: str) -> bool:
    """Whether a step that does nothing runs there."""
    step = ["srun", "--overlap", *where, "--ntasks-per-node=1", "true"]
    try:
        return subprocess.run(step, check=False, capture_output=True, timeout=PROBE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def come_again(run: Path, supervisor: Supervisor, *, cancelled: bool) -> str:
    """Whether this job asks for itself again: unless it was cancelled or Slurm has decided already."""
    state = _own_state(supervisor.start)
    if cancelled:
        return "cancelled"
    if state != "RUNNING":
        print(f"not requeued from here, as Slurm has decided or does not answer: {state}", flush=True)
        return "left to Slurm"
    if supervisor.stuck():
        too_short = "the time limit came before anything was saved: raise resources.time"
        write_status(run, "failed", attempt=_attempt(run), error=too_short)
        return "failed"
    return "requeued"


def requeue() -> None:
    """Asks Slurm for this task of the array again, which ends this process."""
    try:
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
    except FileNotFoundError:
        print("no scontrol on this node: `study launch` continues the run")


def meeting_point() -> dict[str, str]:
    """Where the ranks meet: the first node, at a port that is this job's (below the ephemeral ones)."""
    first = expand_hosts(os.environ["SLURM_JOB_NODELIST"])[0]
    return {"MASTER_ADDR": first, "MASTER_PORT": str(15000 + int(os.environ["SLURM_JOB_ID"]) % 17000)}


def _own_state(start: Start) -> str | None:
    """This start's state in Slurm's words; None where it is another start's job by now, or, after some patience,
    where nobody answers."""
    for _ in range(CONTROLLER_TRIES):
        try:
            job = read_jobs([start.job])[start.job]
            return job.state if job.restarts == start.restart else None
        except ControllerError as error:
            print(error, flush=True)
            time.sleep(ASK_AGAIN_SECONDS)
        except UserError as error:
            print(error, flush=True)
            return None
    return None


def _attempt(run: Path) -> int:
    return int((rundir.read_json(run / rundir.STATUS) or {}).get("attempt") or 0)


def _newest_checkpoint(run: Path) -> str:
    """The first state, which a run commits before any step, is no progress."""
    return max((path.name for path in (run / rundir.CHECKPOINTS).glob("step-*")), default="step-00000000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
