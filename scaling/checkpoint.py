"""Checkpoints that a kill at any moment cannot spoil: their files, how one is committed, kept and read.

Order of a save: write into a temporary folder, fsync, rename, commit marker, pointer. A folder without the marker does
not exist for any reader; the marker has the crc32 of every file, which readers check. One layout for all engines:
tensors by parameter name (`Engine.state`), written by torch.distributed.checkpoint, beside counters.json.
`scaling.saver` decides when and on which thread.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from scaling import files, rundir
from scaling.attempt import Attempt
from scaling.errors import UserError

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # alone is what a single run means to be

COMMIT = "COMMITTED"
COUNTERS = "counters.json"
LATEST = "latest"
CRCS = "crc32"
CHUNK = 1 << 24  # bytes read at a time


@dataclass
class Counters:
    """The state of a run beside its tensors. The position in the data is one number, images consumed."""

    step: int = 0
    images_seen: int = 0
    gpu_seconds: float = 0.0  # of the work that this state contains, summed over devices
    images_skipped: int = 0  # consumed beside images_seen: batches that a rollback took back and left out
    rollbacks: int = 0
    losses: list[float] = field(default_factory=list)  # of the last steps, which `scaling.health` judges the next by

    @property
    def consumed(self) -> int:
        """Images taken from the stream."""
        return self.images_seen + self.images_skipped

    def advance(self, consumed: int) -> None:
        """One step more, which took the images up to `consumed`."""
        self.step += 1
        self.images_seen = consumed - self.images_skipped


def step_name(step: int) -> str:
    """The folder of a step, sortable."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step-"))


def committed(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first; not a copy that somebody keeps beside one."""
    folder = run / rundir.CHECKPOINTS
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.glob("step-*") if (entry / COMMIT).is_file()]
    return sorted((entry for entry in found if entry.name[len("step-") :].isdecimal()), key=step_of)


def at_step(run: Path, step: int) -> Path:
    """The checkpoint of a run at `step`, for a child that branches off there; UserError names the steps there are."""
    found = run / rundir.CHECKPOINTS / step_name(step)
    if not (found / COMMIT).is_file():
        raise UserError("step", step, [step_of(path) for path in committed(run)], why=f"checkpoints of {run.name}")
    return found


def temporary_folder(attempt: Attempt, step: int) -> Path:
    """Where the checkpoint of a step is written before it exists."""
    return attempt.folder / rundir.CHECKPOINTS / f".{step_name(step)}.attempt-{attempt.number}"


def written_by(rank: int, temporary: Path) -> Iterable[Path]:
    """The files of tensors that a rank has put into the temporary folder of a save."""
    return temporary.glob(f"__{rank}_*.distcp")


def crc32_of(path: Path) -> int:
    """The checksum of a file, at about 1.5 GB/s a core; it lets other threads run."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def commit(attempt: Attempt, temporary: Path, counters: Counters, crcs: dict[str, int], seconds: float) -> None:
    """Makes the tensors in `temporary` and `counters` the newest checkpoint. Rank 0 alone.

    `crcs` of the files of tensors by name, and `seconds` since the save began, stand in the marker. Raises Superseded
    when a newer attempt has the folder.
    """
    (temporary / COUNTERS).write_text(json.dumps(dataclasses.asdict(counters)), encoding="utf-8")
    crcs = crcs | {path.name: crc32_of(path) for path in temporary.iterdir() if path.name not in crcs}
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    files.fsync_folder(temporary)
    attempt.check()
    target = temporary.parent / step_name(counters.step)
    shutil.rmtree(target, ignore_errors=True)  # a rename that an earlier attempt made without living to commit it
    temporary.rename(target)
    files.fsync_folder(target.parent)
    marker = {"attempt": attempt.number, "seconds": seconds, CRCS: crcs}
    files.write_text(target / COMMIT, json.dumps(marker) + "\n")
    files.write_text(target.parent / LATEST, target.name + "\n")


def seconds_of(checkpoint: Path) -> float | None:
    """How long its save took; None where the marker does not say."""
    return (rundir.read_json(checkpoint / COMMIT) or {}).get("seconds")


def discard_unread(attempt: Attempt, read: int, written: int) -> None:
    """Takes the markers off the checkpoints after step `read` but the one of step `written`, now committed after it.

    They could not be read when the run went on from `read`, so that none of them may count as one that is kept. Until
    then they stay: an attempt that is killed before its first commit leaves them to the next, which may have more luck.
    Rank 0 alone. Raises Superseded when a newer attempt has the folder.
    """
    attempt.check()
    for path in committed(attempt.folder):
        if step_of(path) > read and step_of(path) != written:
            (path / COMMIT).unlink()


def prune(run: Path, keep: int, every: int, branches: Collection[int] = ()) -> None:
    """Leaves the `keep` newest and, for later stages, the first of every `every` steps (0: none) and `branches`.

    Markers go first; what killed saves left goes too.
    """
    found = committed(run)
    periodic = {step_of(path) // every: path for path in reversed(found) if step_of(path) >= every} if every else {}
    for old in found[:-keep]:
        if old not in periodic.values() and step_of(old) not in branches:
            (old / COMMIT).unlink()
    clear_unfinished(run)


def clear_unfinished(run: Path) -> None:
    """Removes what killed saves left: it may be what keeps the next one from having room.

    The newest attempt alone calls it, with no save of its own under way; an older one's ends with its files.
    """
    folder = run / rundir.CHECKPOINTS
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and not (entry / COMMIT).is_file():
            shutil.rmtree(entry, ignore_errors=True)


def load(checkpoint: Path, state: dict[str, Any]) -> Counters:
    """Fills `state` in place from a checkpoint and returns its counters; all ranks call it.

    Any part of `Engine.state` may be asked for: a child stage takes over model.* and optimizer.* of its parent's
    `at_step`. UserError where a file is missing or not as it was committed, or a tensor missing or misshapen.
    """
    try:
        _require_whole(checkpoint)
        text = _from_first((checkpoint / COUNTERS).read_text, encoding="utf-8")
        counters = Counters(**json.loads(text))
        dcp.load(state, checkpoint_id=checkpoint, no_dist=not dist.is_initialized())
    except (OSError, ValueError, TypeError, RuntimeError, dcp.CheckpointException) as error:
        why = str(root_cause(error))
        raise UserError("checkpoint", str(checkpoint), "a whole checkpoint of this very config", why=why) from error
    return counters


def load_latest(run: Path, state: dict[str, Any]) -> Counters | None:
    """Fills `state` from the newest checkpoint; None when there is none.

    One that cannot be read is named on stderr and the one before it is taken, which costs an interval of work and no
    correctness. UserError, about the newest, when none can be read.
    """
    names = _from_first(lambda: [path.name for path in committed(run)])
    folder = run / rundir.CHECKPOINTS
    pointer = folder / LATEST
    if pointer.is_file() and (latest := pointer.read_text(encoding="utf-8").strip()) not in names:
        print(f"checkpoint {latest} of {run.name} has vanished; {len(names)} older remain", file=sys.stderr)
    first: UserError | None = None
    for name in reversed(names):
        try:
            return load(folder / name, state)
        except UserError as error:
            first = first or error
            print(f"{error}; trying the one before it", file=sys.stderr)
    if first is not None:
        raise first
    return None


def _require_whole(checkpoint: Path) -> None:
    """ValueError, on all ranks alike, for files that are missing or not as they were committed.

    The ranks share the reading. Markers that earlier versions wrote have no checksums.
    """
    marker = _from_first(rundir.read_json, path=checkpoint / COMMIT) or {}
    several = dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    faults = [_fault(checkpoint / name, crc) for name, crc in sorted(marker.get(CRCS, {}).items())[rank::ranks]]
    everywhere = [faults] * ranks
    if several:
        dist.all_gather_object(everywhere, faults)
    if found := [fault for of_rank in everywhere for fault in of_rank if fault]:
        raise ValueError("; ".join(found))


def _fault(path: Path, crc: int) -> str:
    """What is wrong with a file of a checkpoint; empty where nothing is."""
    try:
        return "" if crc32_of(path) == crc else f"{path.name} is not as it was committed (crc32)"
    except OSError as error:
        return f"{path.name}: {error.strerror}"


def root_cause(error: BaseException) -> BaseException:
    """What went wrong on the first rank that failed."""
    if isinstance(error, dcp.CheckpointException) and error.failures:
        return error.failures[min(error.failures)][0]
    return error


def _from_first(call: Any, **options: Any) -> Any:
    """What rank 0 finds, on every rank: others may see a shared file system as it was, or fail alone."""
    if not dist.is_initialized():
        return call(**options)
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = call(**options)
        except OSError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
