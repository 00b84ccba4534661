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
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.reading import QUICK, dump, load_run
from scaling.study import identity
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
    """Writes study.yaml and runs.txt and, for every run that has none, config.yaml and a planned status; returns the
    study folder.

    A folder that exists is left as it is: its name holds the hash of its config. UserError, before anything is written,
    where its config.yaml is another one in a field that changes the result.
    """
    folder = root / plan.study.name
    require_writable(folder)
    for row in plan.rows:
        if rundir.is_run(folder / row.config.run):
            require_own(row.config, folder / row.config.run / rundir.CONFIG)
    files.write_text(folder / rundir.STUDY, yaml.safe_dump(plan.study.given, sort_keys=False, allow_unicode=True))
    files.write_text(folder / rundir.ASKED, "".join(f"{row.config.run}\n" for row in plan.rows))
    write_tuning(plan.study, folder, plan.data.fingerprint, plan.data.samples, plan.data.classes)
    for row in plan.rows:
        run = folder / row.config.run
        if rundir.is_run(run):
            continue
        run.mkdir(parents=True, exist_ok=True)
        write_status(run, "planned")
        files.write_text(run / rundir.CONFIG, dump(row.config))
    return folder


def require_own(config: RunConfig, path: Path) -> None:
    """UserError for the first field that changes the result and stands otherwise in the config.yaml at `path`."""
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), QUICK)
    except (OSError, ValueError, yaml.YAMLError):
        given = None
    if isinstance(given, dict) and not identity.changed_fields(config, given):
        return
    # Read as a run reads it, which tells 1e-3 from a text but takes 40 ms.
    for name, value in identity.changed_fields(config, load_run(path)).items():
        valid = f"{identity.result_fields(config)[name]}, with which the run was made"
        raise UserError(name, value, valid, why=f"in {path}: for another result change the study, not a run of it")


def write_configs(rows: Iterable[Row], folder: Path) -> None:
    """Brings the config.yaml of runs that are about to start up to date."""
    for row in rows:
        path, text = folder / row.config.run / rundir.CONFIG, dump(row.config)
        if path.read_text(encoding="utf-8") != text:
            files.write_text(path, text)


def mark_cancelled(plan: Plan, folder: Path) -> list[str]:
    """Every run with a folder that is neither completed nor failed, now cancelled; none of them may be running."""
    runs = [row.config.run for row in plan.rows if rundir.is_run(folder / row.config.run)]
    cancelled = [run for run in runs if run_state(folder / run) not in ("completed", "failed")]
    for run in cancelled:
        mark(folder / run, "cancelled")
    return cancelled
