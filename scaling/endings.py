"""How a run that is not completed ended, in status.json and as the error that its process ends with."""

from __future__ import annotations

import sys
from pathlib import Path

from scaling import rundir
from scaling.attempt import Attempt, at_work, job_id, write_status
from scaling.environment import Rank
from scaling.errors import UserError
from scaling.files import UNWRITABLE
from scaling.stop import Stopped


def record_stop(attempt: Attempt, reason: str) -> None:
    """The state is committed and the run goes on another time."""
    if not attempt.superseded:
        attempt.set_status("stopped", error=reason)


def record_failure(folder: Path, rank: Rank, attempt: Attempt | None, error: BaseException) -> BaseException:
    """Records the failure of rank 0, or a user's error that this rank alone may have met; the error to end with.

    It is the run's only while this attempt is the newest or, before its claim, while no other process is at work. Where
    another rank has said before how the attempt ended, this is its consequence: connections break when a rank leaves.
    """
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        error = UserError("run folder", str(folder), "a folder that can be written, with room", why=str(error))
    ended = _ended(folder, attempt)
    if ended is not None:
        return Stopped(ended[1]) if ended[0] == "stopped" else error
    is_told_here = rank.rank == 0 or (attempt is not None and isinstance(error, UserError))
    is_anothers = attempt.superseded if attempt is not None else _others_work(folder)
    if is_told_here and not is_anothers:
        try:
            message = f"{type(error).__name__}: {error}"
            write_status(folder, "failed", attempt=attempt.number if attempt else 0, error=message)
        except OSError as unwritten:
            print(f"{rundir.STATUS} could not be written either: {unwritten}", file=sys.stderr)
    return error


def _others_work(folder: Path) -> bool:
    """Whether another process may be at work; not an earlier start of this very job, which is over."""
    job = job_id()
    return at_work(folder) and (job is None or (rundir.read_json(folder / rundir.STATUS) or {}).get("job_id") != job)


def _ended(folder: Path, attempt: Attempt | None) -> tuple[str, str] | None:
    """(state, reason) that this very attempt already has, if it is one of an end."""
    status = rundir.read_json(folder / rundir.STATUS) or {}
    if attempt is None or status.get("attempt") != attempt.number or status.get("state") not in ("stopped", "failed"):
        return None
    return str(status["state"]), str(status.get("error"))
