"""The folders of a study: its study.yaml and one folder a run, made before anything is started."""

from __future__ import annotations

from pathlib import Path

import yaml

from scaling import files, rundir
from scaling.attempt import write_status
from scaling.reading import dump
from scaling.study.plan import Plan
from scaling.study.tune import write_tuning


def write_folders(plan: Plan, root: Path) -> Path:
    """Writes study.yaml and, for every run that has none, config.yaml and a planned status; returns the study folder.

    A folder that exists is left as it is: its name holds the hash of its config.
    """
    folder = root / plan.study.name
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
