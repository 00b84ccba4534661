"""Plain sbatch files of a study: to read, to edit and to submit by hand, with the jobs' behaviour of a launch.

    DIR/01-pretrain-1x8.sbatch ...   one an array, exactly what a launch would submit
    DIR/submit.sh                    submits them in order, children behind their parents

Each file is a whole job: options, environment and the command of a rank. Its runs stand beside the study
(<study>/slurm/batch-N/runs.json), so that status and cancel know them too, once submit.sh has noted their jobs.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from scaling import files
from scaling.errors import UserError
from scaling.study.folders import require_writable, write_configs, write_folders
from scaling.study.plan import Plan
from slurm.batches import EMITTED, JOB, RUNS, only_launch, overtake, write_batch
from slurm.launcher import OF_A_JOB, OF_THE_MASTER, Array, array_size, prepare, recover, text
from slurm.script import overriding
from slurm.site import Site
from slurm.states import read_standings

SUBMIT: Final = "submit.sh"


def emit(plan: Plan, root: Path, site: Site, folder: Path, *, limit: int | None = None) -> list[Path]:
    """Writes the files of every run that a launch would submit, submits nothing, and returns the scripts."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError("--emit", str(folder), "a folder that is new or empty")
    study = root / plan.study.name
    require_writable(study)
    require_writable(folder, "--emit")
    with only_launch(study):
        write_folders(plan, root)
        recover(study)
        arrays = prepare(plan, root, site, read_standings(plan, root), size=array_size(required=False))
        rows = [row for array in arrays for row in array.rows.values()]
        overtake(study, [row.config.run for row in rows])
        write_configs(rows, study)
        scripts = []
        for number, array in enumerate(arrays, 1):
            script = folder / f"{number:02d}-{_title(array)}.sbatch"
            content = text(array, site, limit, depends=False)
            write_batch(array.batch, content)
            files.write_text(array.folder / EMITTED, f"{script.resolve()}\n")
            files.write_text(script, content)
            scripts.append(script)
    files.write_text(folder / SUBMIT, submit_all(arrays, scripts))
    (folder / SUBMIT).chmod(0o755)
    return scripts


def _title(array: Array) -> str:
    stages = sorted({row.config.stage for row in array.rows.values()})
    return f"{'-'.join(stages)}-{array.shape.nodes}x{array.shape.ranks_per_node}"


def submit_all(arrays: list[Array], scripts: list[Path]) -> str:
    """The text of submit.sh: an sbatch a script, whose id is noted in its batch and waited for by its children.

    Called again it goes on where it was cut off; once a launch has overtaken it, it submits nothing.
    """
    variables = sorted({name for script in scripts for name in overriding(script.read_text(encoding="utf-8"))})
    notes = " ".join(shlex.quote(str((array.folder / RUNS).resolve())) for array in arrays)
    lines = [
        "#!/bin/bash",
        "# Submits the arrays of this folder that are not submitted yet.",
        "# A child waits for the task of its parent's array with its own number.",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        f"for note in {notes}; do",
        '    [ -f "$note" ] || { echo "a later launch has taken over these runs: there is no $note" >&2; exit 1; }',
        "done",
        "# Run inside a job, sbatch would hand its variables on, and a user's defaults go before what a script says.",
        f"for name in {' '.join([*OF_THE_MASTER, *(f'${{!{prefix}@}}' for prefix in OF_A_JOB)])}; do",
        '    [ "$name" = SLURM_CONF ] || unset "$name"',
        "done",
        f"unset {' '.join(variables)}",
    ]
    for array, script in zip(arrays, scripts, strict=True):
        waits = ""
        if array.parent is not None:
            parent = shlex.quote(str((array.parent.folder / JOB).resolve()))
            waits = f' --dependency="aftercorr:$(cat {parent})" --kill-on-invalid-dep=yes'
        job = shlex.quote(str((array.folder / JOB).resolve()))
        submit = f"sbatch --parsable{waits} {shlex.quote(script.name)} | cut -d';' -f1 | tee {job}"
        lines.append(f"[ -s {job} ] || {submit}")
    return "\n".join(lines) + "\n"
