"""What Slurm knows about jobs: squeue for those the controller remembers, sacct for those it has forgotten.

The controller is always right about a job that it lists: accounting lags it by seconds and keeps a record for each
attempt, so that NODE_FAIL or PREEMPTED there may be the past of a job that is running again. Accounting decides only on
jobs that the controller no longer lists (MinJobAge, 5 minutes after their end by default). Without accounting those
are unknown, and the run folder has the last word.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from scaling.errors import UserError

CLIENT_SECONDS: Final = 60
# fmt: off
ENDED: Final = frozenset((
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
))
# fmt: on
"""The states that a job doesn't leave. Any other word, known or not, counts as alive: never submit twice on a doubt."""

SQUEUE_FIELDS: Final = ("JobArrayID", "State", "RestartCnt", "exit_code", "NodeList", "Name", "Reason")
SACCT_FIELDS: Final = ("JobID", "State", "ExitCode", "NodeList", "Submit", "Start", "End", "JobName")
# Not Reason: in accounting it stays what the job waited for before it started.
NEVER: Final = "DependencyNeverSatisfied"


class ControllerError(RuntimeError):
    """The controller does not answer, which says nothing about its jobs."""


@dataclass(frozen=True)
class Job:
    """One job, or one task of an array."""

    id: str
    """As "12" or "12_3"."""
    state: str
    """In Slurm's words: PENDING, RUNNING, COMPLETED..."""
    reason: str
    nodes: tuple[str, ...]
    restarts: int
    exit_code: int
    signal: int
    name: str
    """Ids are given again where a cluster is set up anew; names of ours are not."""

    @property
    def alive(self) -> bool:
        return self.state not in ENDED

    @property
    def blocked(self) -> bool:
        """Whether it waits for a job that has failed, for ever unless it is cancelled."""
        return self.alive and self.reason == NEVER

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled it; Slurm itself cancels what waited for a job that has failed."""
        return self.state == "CANCELLED" and self.reason != NEVER


@dataclass(frozen=True)
class Attempt:
    """One start of a job, or its wait for one, as accounting recorded it. Times are in seconds since the epoch."""

    id: str
    state: str
    nodes: tuple[str, ...]
    exit_code: int
    signal: int
    submitted: int | None
    started: int | None
    ended: int | None
    name: str
    reason: str
    """NEVER for what Slurm itself cancelled, as nobody is named who did; else ""."""


def read_jobs(ids: Iterable[str]) -> dict[str, Job]:
    """{id: job} of the jobs, and of all tasks of the arrays, in `ids`; those that Slurm does not know are left out.

    Raises UserError where Slurm's clients are missing and ControllerError where the controller does not answer.
    """
    wanted = set(ids)
    known = {job.id: job for job in parse_squeue(_squeue(_arrays(wanted)))}
    # An array's own id asks for tasks that nobody has counted, so accounting may know more of them.
    forgotten = {job_id for job_id in wanted if job_id not in known}
    if forgotten and (attempts := read_attempts(forgotten)) is not None:
        # What accounting takes for alive and the controller does not list has just ended or was lost: unknown.
        ended = {job.id: job for job in last_attempts(attempts) if not job.alive}
        known = ended | known
    # For some seconds accounting shows one task of an array under the array's own id.
    arrays = {job_id.split("_")[0] for job_id in known if "_" in job_id}
    asked = (job for job in known.values() if job.id in wanted or job.id.split("_")[0] in wanted)
    return {job.id: job for job in asked if job.id not in arrays}


def read_attempts(ids: Iterable[str]) -> list[Attempt] | None:
    """All attempts at the jobs in `ids`, oldest first; None where there is no accounting or it does not answer."""
    command = ["--noheader", "--parsable2", "--allocations", "--duplicates", f"--format={','.join(SACCT_FIELDS)}"]
    try:
        result = call("sacct", *command, f"--jobs={','.join(_arrays(ids))}")
    except (ControllerError, UserError):
        return None
    return parse_sacct(result.stdout) if result.returncode == 0 else None


def read_settings() -> dict[str, str]:
    """The controller's configuration, such as MaxArraySize and AccountingStorageType."""
    result = call("scontrol", "show", "config")
    if result.returncode != 0:
        raise ControllerError(result.stderr.strip())
    return parse_settings(result.stdout)


def largest_array(settings: dict[str, str]) -> int:
    """Tasks that an array may have by the controller's configuration: a site may allow fewer than it has numbers."""
    fewer = re.findall(r"\bmax_array_tasks=(\d+)", settings.get("SchedulerParameters", ""))
    return min(int(limit) for limit in (settings["MaxArraySize"], *fewer))


def call(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What one of Slurm's clients says; its exit status is the caller's to judge. Raises as `read_jobs` does."""
    # The user's own defaults would change the output (SQUEUE_USERS, SACCT_FORMAT...); lists of tasks are printed whole
    # and times as seconds since the epoch.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    environment = {**kept, "LC_ALL": "C", "SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "%s"}
    try:
        return subprocess.run(
            [program, *options], capture_output=True, text=True, check=False, env=environment, timeout=CLIENT_SECONDS
        )
    except FileNotFoundError:
        raise UserError("--cluster", "slurm", "local, or a machine with Slurm", f"{program} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ControllerError(f"{program}: no answer within {CLIENT_SECONDS} s") from None


def parse_squeue(text: str) -> list[Job]:
    """Jobs in the output of squeue with SQUEUE_FIELDS, each followed by a bar."""
    jobs = []
    for job_id, state, restarts, status, nodes, name, reason in _rows(text, len(SQUEUE_FIELDS)):
        # squeue prints the status as wait(2) gives it.
        code, signal = int(status) >> 8, int(status) & 0x7F
        reason = "" if reason == "None" else reason
        jobs.append(Job(job_id, state, reason, expand_hosts(nodes), int(restarts), code, signal, name))
    return jobs


def parse_sacct(text: str) -> list[Attempt]:
    """Attempts in the output of sacct with SACCT_FIELDS, oldest first; waiting tasks of an array one by one."""
    attempts = []
    for ids, state, status, nodes, submitted, started, ended, name in _rows(text, len(SACCT_FIELDS)):
        code, signal = (int(part) for part in status.split(":"))
        for job_id in expand_hosts(re.sub(r"%\d+\]", "]", ids)):
            attempt = Attempt(
                id=job_id,
                state=state.split(" ")[0].rstrip("+"),  # "CANCELLED by 1000"
                nodes=() if nodes == "None assigned" else expand_hosts(nodes),
                exit_code=code,
                signal=signal,
                submitted=_seconds(submitted),
                started=_seconds(started),
                ended=_seconds(ended),
                name=name,
                reason=NEVER if state == "CANCELLED" else "",
            )
            attempts.append(attempt)
    return sorted(attempts, key=lambda attempt: attempt.submitted or 0)


def parse_settings(text: str) -> dict[str, str]:
    """{key: value} of the output of `scontrol show config`."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def last_attempts(attempts: Iterable[Attempt]) -> list[Job]:
    """The jobs as their last attempts left them, from attempts in order."""
    last: dict[str, Attempt] = {}
    counts: dict[str, int] = {}
    for attempt in attempts:
        last[attempt.id] = attempt
        counts[attempt.id] = counts.get(attempt.id, 0) + 1
    return [
        Job(job_id, end.state, end.reason, end.nodes, counts[job_id] - 1, end.exit_code, end.signal, end.name)
        for job_id, end in last.items()
    ]


def expand_hosts(text: str) -> tuple[str, ...]:
    """The names in Slurm's short form: "n[08-10,12],r[1-2]n[1-2]" is n08 n09 n10 n12 r1n1 r1n2 r2n1 r2n2."""
    names: list[str] = []
    for pattern in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        expanded = [""]
        for plain, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", pattern):
            parts = [plain] if plain else list(_expand_ranges(ranges))
            expanded = [head + part for head in expanded for part in parts]
        names += expanded
    return tuple(names)


def _expand_ranges(text: str) -> Iterator[str]:
    for item in text.split(","):
        first, _, last = item.partition("-")
        if not last:
            yield first
            continue
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))


def _arrays(ids: Iterable[str]) -> list[str]:
    """Ids of whole jobs: one id an array keeps the command short, however many tasks it has."""
    return sorted({job_id.split("_")[0] for job_id in ids}, key=int)


def _squeue(jobs: Sequence[str]) -> str:
    if not jobs:
        return ""
    layout = ",".join(f"{field}:|" for field in SQUEUE_FIELDS)
    result = call("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}", f"--Format={layout}")
    if result.returncode == 0:
        return result.stdout
    # With one id alone squeue fails where the job is forgotten; with several it leaves the forgotten out.
    if "Invalid job id" in result.stderr:
        return ""
    raise ControllerError(result.stderr.strip())


def _rows(text: str, fields: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        # The last field is free text.
        row = line.removesuffix("|").split("|", fields - 1)
        if len(row) == fields:
            yield row


def _seconds(text: str) -> int | None:
    return int(text) if text.isdigit() and int(text) > 0 else None
