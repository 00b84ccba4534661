"""Checkpoints that a kill at any moment cannot spoil.

Order of a save: write into a temporary folder, fsync, rename, commit marker, pointer. A folder without the marker does
not exist for any reader. One layout for all engines: tensors by parameter name (`Engine.state`), written by
torch.distributed.checkpoint, beside counters.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from scaling import files, rundir
from scaling.attempt import Attempt
from scaling.errors import UserError

COMMIT = "COMMITTED"
COUNTERS = "counters.json"
LATEST = "latest"


@dataclass
class Counters:
    """The state of a run beside its tensors. The position in the data is one number, images consumed."""

    step: int = 0
    images_seen: int = 0
    gpu_seconds: float = 0.0  # of the work that this state contains, summed over devices


def step_name(step: int) -> str:
    """The folder of a step, sortable."""
    return f"step-{step:08d}"


def committed(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first."""
    folder = run / rundir.CHECKPOINTS
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.glob("step-*") if (entry / COMMIT).is_file())


def save(attempt: Attempt, state: dict[str, Any], counters: Counters, keep: int) -> None:
    """Commits `state` and `counters`; afterwards the `keep` newest checkpoints remain.

    All ranks call it. Raises Superseded when a newer attempt has taken the folder over.
    """
    alone = not dist.is_initialized()
    folder = attempt.folder / rundir.CHECKPOINTS
    temporary = folder / f".{step_name(counters.step)}.attempt-{attempt.number}"
    if attempt.writes:
        attempt.check()
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    if not alone:
        dist.barrier()
    dcp.save(state, checkpoint_id=temporary, no_dist=alone)
    if attempt.writes:
        (temporary / COUNTERS).write_text(json.dumps(dataclasses.asdict(counters)), encoding="utf-8")
        _commit(attempt, temporary, folder / step_name(counters.step))
        _prune(attempt.folder, keep)
    if not alone:
        dist.barrier()


def _commit(attempt: Attempt, temporary: Path, target: Path) -> None:
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    files.fsync_folder(temporary)
    attempt.check()
    shutil.rmtree(target, ignore_errors=True)  # a rename that an earlier attempt made without living to commit it
    temporary.rename(target)
    files.fsync_folder(target.parent)
    files.write_text(target / COMMIT, f"{attempt.number}\n")
    files.write_text(target.parent / LATEST, target.name + "\n")


def _prune(run: Path, keep: int) -> None:
    """Removes old checkpoints, marker first, and leftovers of killed saves."""
    for old in committed(run)[:-keep]:
        (old / COMMIT).unlink()
    for entry in (run / rundir.CHECKPOINTS).iterdir():
        if entry.is_dir() and not (entry / COMMIT).is_file():
            shutil.rmtree(entry, ignore_errors=True)


def load_latest(run: Path, state: dict[str, Any]) -> Counters | None:
    """Fills `state` in place from the newest complete checkpoint; None when there is none."""
    found = committed(run)
    if not found:
        return None
    newest = found[-1]
    try:
        dcp.load(state, checkpoint_id=newest, no_dist=not dist.is_initialized())
        counters = Counters(**json.loads((newest / COUNTERS).read_text(encoding="utf-8")))
    except (OSError, ValueError, RuntimeError, dcp.CheckpointException) as error:
        raise UserError("checkpoint", str(newest), "a checkpoint of this very config", why=str(error)) from error
    return counters
