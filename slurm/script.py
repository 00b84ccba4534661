"""The text that sbatch gets: a pure function, readable and good to edit and submit by hand."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaling.config import RunConfig
from scaling.timelimit import minutes
from slurm.batches import GRACE, Batch
from slurm.site import Site

HOME: Final = Path(__file__).resolve().parents[1]
RANK: Final = "trap '' TERM INT USR1 USR2; \"$@\"; status=$?; [ $status -eq 85 ] || exit $status"
VARIABLES: Final = {"array": "ARRAY_INX", "time": "TIMELIMIT", "mem": "MEM_PER_NODE", "requeue": "NO_REQUEUE"}
"""Options of sbatch whose variables are not called as they are."""


@dataclass(frozen=True)
class Shape:
    """What a run asks of Slurm; runs of equal shape can share an array."""

    nodes: int
    ranks_per_node: int
    minutes: int
    grace: int = 120
    """Seconds before its time limit at which the job is asked to stop; scaling.stop watches the same limit."""


def shape_of(config: RunConfig, site: Site) -> Shape:
    """The shape of a run; its time is cut to the site's longest."""
    asked = minutes(config.resources.time, "resources.time")
    allowed = minutes(site.time, "time") if site.time else asked
    resources = config.resources
    return Shape(resources.nodes, resources.gpus_per_node, min(asked, allowed), round(resources.grace))


def script(batch: Batch, shape: Shape, site: Site, *, limit: int | None, parent: str | None, directory: Path) -> str:
    """The sbatch script of `batch`, whose tasks run in `directory`, at most `limit` of them at a time.

    `parent` is the array whose task of the same number each task waits for.
    """
    options = {
        "job-name": batch.name,
        "array": _ranges(sorted(batch.runs)) + (f"%{limit}" if limit else ""),
        "nodes": shape.nodes,
        "ntasks-per-node": shape.ranks_per_node,
        "gpus-per-node": shape.ranks_per_node if site.gpus else None,
        "cpus-per-task": site.cpus_per_rank,
        "mem": site.memory,
        "time": shape.minutes,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "exclude": ",".join(site.exclude),
        "dependency": f"aftercorr:{parent}" if parent else None,
        "kill-on-invalid-dep": "yes" if parent else None,
        # To the batch process alone, which passes it on; the same signal announces a preemption.
        "signal": f"B:USR2@{shape.grace}",
        "requeue": True,
        "open-mode": "append",
        "chdir": directory,
        "output": str(batch.folder.resolve()).replace("%", "%%") + "/%a.log",
    }
    python = shlex.quote(sys.executable)
    lines = ["#!/bin/bash"]
    for name, value in options.items():
        if value is True:
            lines.append(f"#SBATCH --{name}")
        elif value is not None and value != "":
            lines.append(f"#SBATCH --{name}={shlex.quote(str(value))}")
    lines += [
        "",
        "trap '' USR2  # until slurm.job listens: the signal's default action would end the job",
        *(f"module load {module}" for module in site.modules),
        *site.setup,
        "export PYTHONSAFEPATH=1",
        f'export PYTHONPATH={shlex.quote(str(HOME))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
        f"export {GRACE}={shape.grace}",
        "",
        "# One task a rank. One that fails takes the others with it; one that has saved and left (85) must not.",
        "# Signals reach every process of a task, and the shell must outlive them.",
        f"rank={shlex.quote(RANK)}",
        "# slurm.job runs the command with the run's config.yaml behind it, passes stop signals on to the tasks, and",
        "# requeues this task of the array until the run's summary is written.",
        f"exec {python} -m slurm.job {shlex.quote(str(batch.folder.resolve()))} \\",
        f'    {shlex.join(["srun", *_srun_options(site)])} bash -c "$rank" rank \\',
        f"    {' '.join(filter(None, (site.container, site.python or python)))} -m scaling.cli run",
    ]
    return "\n".join(lines) + "\n"


def overriding(text: str) -> list[str]:
    """Variables such as SBATCH_PARTITION that a user may have set, which sbatch would put above a script's options."""
    names = re.findall(r"^#SBATCH --([\w-]+)", text, re.MULTILINE)
    return [f"SBATCH_{VARIABLES.get(name, name.upper().replace('-', '_'))}" for name in names]


def _srun_options(site: Site) -> list[str]:
    """srun takes the rest from the job, save for the CPUs of a task (since 22.05).

    Ranks get the environment of the job, also where that gets none of the user's (SBATCH_EXPORT=NONE).
    """
    return ["--kill-on-bad-exit=1", "--unbuffered", "--export=ALL", f"--cpus-per-task={site.cpus_per_rank}"]


def _ranges(tasks: list[int]) -> str:
    """0-2,5 for 0, 1, 2 and 5."""
    parts: list[list[int]] = []
    for task in tasks:
        if parts and parts[-1][-1] == task - 1:
            parts[-1].append(task)
        else:
            parts.append([task])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
