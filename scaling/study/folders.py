"""The folders of a study: its study.yaml and one folder a run, made before anything is started.

A run's config.yaml is written again whenever the run is about to be started: what changes no result (resources, engine,
micro_batch...) may have changed in the study since, or for a retry.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from scaling import files, rundir
from scaling.attempt import mark, write_status
from scaling.errors import UserError
from scaling.reading import dump
from scaling.study.plan import Plan, Row, run_state
from scaling.study.tune import write_tuning


def require_writable(folder: Path, name: str = "--root") -> None:
    """UserError where `folder` cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(name, str(folder), "a folder that can be written", why=error.strerror or str(error)) from None


def write_folders(plan: Plan, root: Path) -> Path:
    """Writes study.yaml and, for every run that has none, config.yaml and a planned status; returns the study folder.

    A folder that exists is left as it is: its name holds the hash of its config.
    """
    folder = root / plan.study.name
    require_writable(folder)
    files.write_text(folder / rundir.STUDY, yaml.safe_dump(plan.study.given, sort_keys=False, allow_unicode=True))
    write_tuning(plan.study, folder, plan.data.fingerprint, plan.data.samples, plan.data.classes)
    for row in plan.rows:
        run = folder / row.config.run
        if rundir.is_run(run):
            continue
        run.mkdir(parents=True, exist_ok=True)
        write_status(run, "planned")
        files.write_text(run / rundir.CONFIG, dump(row.config))
    return folder


def write_configs(rows: Iterable[Row], folder: Path) -> None:
    """Brings the config.yaml of runs that are about to start up to date."""
    for row in rows:
        path, text = folder / row.config.run / rundir.CONFIG, dump(row.config)
        if path.read_text(encoding="utf-8") != text:
            files.write_text(path, text)


def mark_cancelled(plan: Plan, folder: Path) -> list[str]:
    """Every run that is neither completed nor failed, now cancelled; none of them may be running."""
    runs = [row.config.run for row in plan.rows]
    cancelled = [run for run in runs if run_state(folder / run) not in ("completed", "failed")]
    for run in cancelled:
        if rundir.is_run(folder / run):
            mark(folder / run, "cancelled")
    return cancelled
