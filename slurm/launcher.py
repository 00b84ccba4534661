"""The Slurm launcher: runs of a study as arrays, one array for runs of equal shape; the contract of the local one."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scaling import files
from scaling.attempt import mark
from scaling.errors import UserError
from scaling.study.folders import require_writable, write_configs, write_folders
from scaling.study.plan import Plan, Row, run_state
from slurm.batches import (
    JOB,
    SCRIPT,
    Batch,
    drop,
    newest,
    next_batches,
    only_launch,
    overtake,
    read_batches,
    write_batch,
)
from slurm.queue import CLIENT_SECONDS, ControllerError, call, largest_array, read_settings
from slurm.script import Shape, overriding, script, shape_of
from slurm.site import Site
from slurm.states import Standing, read_standings

TRIES: Final = 5
DEFAULT_ARRAY_SIZE: Final = 1001
SINCE: Final = ("--starttime=now-30days",)
LEFT_ALONE: Final = ("completed", "queued", "running", "cancelled")
"""States that a launch leaves alone; `retry` takes up cancelled runs too."""
AGAIN: Final = ("failed", "blocked", "cancelled")
"""States of the past for a run that is submitted."""

OF_A_JOB: Final = ("SLURM_", "SLURMD_", "SRUN_")
"""Variables that sbatch would hand on from a job to those that are submitted inside it."""
OF_THE_MASTER: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TEMPORARY: Final = (
    "Socket timed out", "Unable to contact slurm controller", "temporarily unable", "Resource temporarily unavailable",
    "Connection refused", "Zero Bytes were transmitted", "Slurm backup controller in standby",
)  # fmt: skip


@dataclass
class Array:
    """An array to be submitted: runs of one shape that wait for the same array, or for none."""

    shape: Shape
    parent: Batch | None
    rows: dict[int, Row] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def batch(self) -> Batch:
        return Batch(self.folder, {task: row.config.run for task, row in self.rows.items()})


def launch(plan: Plan, root: Path, site: Site, *, limit: int | None = None, again: Iterable[str] = ()) -> list[Batch]:
    """Submits every run that is neither completed, in the queue nor cancelled; returns the batches submitted.

    `limit` bounds the runs of one array that run at a time; runs in states `again` are submitted as well. Raises
    UserError when another launch of the study is at work or Slurm refuses, ControllerError when Slurm stays away.
    """
    study = root / plan.study.name
    require_writable(study)
    with only_launch(study):
        write_folders(plan, root)
        recover(study)
        arrays = prepare(plan, root, site, read_standings(plan, root), again, size=array_size())
        rows = [row for array in arrays for row in array.rows.values()]
        overtake(study, [row.config.run for row in rows])
        write_configs(rows, study)
        for run in (study / row.config.run for row in rows):
            if run_state(run) in AGAIN:
                mark(run, "planned")  # so that one that ends before it says a word has failed, this time
        for number, array in enumerate(arrays):
            write_batch(array.batch, text(array, site, limit))
            try:
                _note_job(array.batch, submit(array.batch))
            except UserError as refused:
                why = f"{refused.why}; {number} of {len(arrays)} arrays were submitted before it"
                raise UserError(refused.field, refused.value, refused.valid, why) from None
    return [array.batch for array in arrays]


def scripts(plan: Plan, root: Path, site: Site, *, limit: int | None = None) -> list[str]:
    """What `launch` would submit; nothing is. A parent that has no id yet stands there by its job's name."""
    arrays = prepare(plan, root, site, read_standings(plan, root), size=array_size(required=False))
    return [text(array, site, limit) for array in arrays]


def array_size(*, required: bool = True) -> int:
    """Tasks that an array may have; Slurm's default where Slurm is not `required` and not here."""
    try:
        return largest_array(read_settings())
    except UserError:
        if required:
            raise
        return DEFAULT_ARRAY_SIZE


def text(array: Array, site: Site, limit: int | None, *, depends: bool = True) -> str:
    """The sbatch script of `array`, whose parent is submitted already; without `depends` whoever submits it says so."""
    parent = (array.parent.job or array.parent.name) if array.parent and depends else None
    return script(array.batch, array.shape, site, limit=limit, parent=parent, directory=Path.cwd())


def prepare(
    plan: Plan, root: Path, site: Site, standings: dict[str, Standing], again: Iterable[str] = (), *, size: int
) -> list[Array]:
    """The arrays to submit, of at most `size` tasks each, parents first."""
    study = root / plan.study.name
    left_alone = set(LEFT_ALONE) - set(again)
    rows = [row for row in plan.rows if standings[row.config.run].state not in left_alone]
    if not rows:
        return []
    folders = next_batches(study)
    last = newest(read_batches(study))
    # A run may be alive in a job that nobody submitted here; what waits for it is for a later launch.
    alive = {run: standing.job for run, standing in standings.items() if standing.state in ("queued", "running")}
    placed = {run: place for run, place in last.items() if alive.get(run) == f"{place[0].job}_{place[1]}"}
    arrays: list[Array] = []
    completed = {run for run, standing in standings.items() if standing.state == "completed"}
    for level in range(max(row.level for row in rows) + 1):
        # A child whose parent is cancelled has nothing to wait for.
        ready = [row for row in rows if row.level == level and row.config.parent in {None, *completed, *placed}]
        for array in arrange(ready, placed, site, size):
            array.folder = next(folders)
            placed |= {row.config.run: (array.batch, task) for task, row in array.rows.items()}
            arrays.append(array)
    return arrays


def arrange(rows: list[Row], placed: dict[str, tuple[Batch, int]], site: Site, size: int) -> list[Array]:
    """Rows of one level as arrays of at most `size` tasks.

    A child takes its parent's number in the array, so that aftercorr lets each child wait for its own parent alone;
    the second child of one parent goes into a second array.
    """
    arrays: list[Array] = []
    for row in rows:
        shape = shape_of(row.config, site)
        parent, task = placed.get(row.config.parent or "", (None, None))
        for array in arrays:
            alike = array.shape == shape and array.parent == parent
            if alike and len(array.rows) < size and task not in array.rows:
                break
        else:
            array = Array(shape, parent)
            arrays.append(array)
        array.rows[len(array.rows) if task is None else task] = row
    return arrays


def recover(study: Path) -> None:
    """Settles batches whose launch was cut off around sbatch: those that Slurm got are noted, the others dropped.

    Emitted ones may have been submitted by hand, which can be found out only where Slurm is.
    """
    for batch in read_batches(study):
        if batch.job is None and not (batch.emitted and shutil.which("squeue") is None):
            job = find(batch.name)
            if job is None and not batch.emitted:
                drop(batch)
            elif job is not None:
                _note_job(batch, job)


def submit(batch: Batch) -> str:
    """Slurm's id of the array, submitted once: after an answer that got lost the queue is asked first.

    Raises UserError when Slurm refuses (and drops the batch), ControllerError when it stays away.
    """
    # Neither the ranks nor the job that this process may itself be part of, nor what would undo the script.
    left_out = {*OF_THE_MASTER, *overriding((batch.folder / SCRIPT).read_text(encoding="utf-8"))}
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in left_out and (key == "SLURM_CONF" or not key.startswith(OF_A_JOB))
    }
    for attempt in range(TRIES):
        command = ["sbatch", "--parsable", str(batch.folder / SCRIPT)]
        try:
            result = subprocess.run(
                command, env=kept, capture_output=True, text=True, check=False, timeout=CLIENT_SECONDS
            )
        except FileNotFoundError:
            raise UserError("--cluster", "slurm", "local, or a machine with Slurm", "no sbatch") from None
        except subprocess.TimeoutExpired:
            told = f"no answer within {CLIENT_SECONDS} s"
        else:
            if result.returncode == 0:
                return result.stdout.strip().split(";")[0]
            told = result.stderr.strip()
            if not any(words in told for words in TEMPORARY):
                drop(batch)
                raise UserError("sbatch", batch.name, "options that this cluster takes", why=told)
        time.sleep(2**attempt)
        if (job := find(batch.name)) is not None:
            return job
    raise ControllerError(f"sbatch failed {TRIES} times, last: {told}")


def find(name: str) -> str | None:
    """The id of the array called `name` that Slurm has or had, None where there is none."""
    queued = call("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F")
    if queued.returncode != 0:
        raise ControllerError(queued.stderr.strip())
    listing = queued.stdout
    if not listing.strip():
        # Accounting is not everywhere; without it a job that has ended is known by its run folders alone.
        kept = call("sacct", "--noheader", "--parsable2", "--allocations", f"--name={name}", *SINCE, "--format=JobID")
        listing = kept.stdout if kept.returncode == 0 else ""
    return listing.split()[0].split("_")[0] if listing.strip() else None


def _note_job(batch: Batch, job: str) -> None:
    files.write_text(batch.folder / JOB, job + "\n")
