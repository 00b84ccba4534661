"""The text that sbatch gets: a pure function, readable and good to edit and submit by hand."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaling.config import RunConfig
from slurm.batches import Batch
from slurm.site import Site, minutes

HOME: Final = Path(__file__).resolve().parents[1]
STOP_SECONDS: Final = 120
"""Before its time limit a job is asked to stop; scaling.stop watches the same limit by itself."""


@dataclass(frozen=True)
class Shape:
    """What a run asks of Slurm; runs of equal shape can share an array."""

    nodes: int
    ranks_per_node: int
    minutes: int


def shape_of(config: RunConfig, site: Site) -> Shape:
    """The shape of a run; its time is cut to the site's longest."""
    asked = minutes(config.resources.time, "resources.time")
    allowed = minutes(site.time, "time") if site.time else asked
    return Shape(config.resources.nodes, config.resources.gpus_per_node, min(asked, allowed))


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
        "dependency": f"aftercorr:{parent}" if parent else None,
        "kill-on-invalid-dep": "yes" if parent else None,
        # To the batch process alone, which passes it on; the same signal announces a preemption.
        "signal": f"B:USR2@{STOP_SECONDS}",
        "requeue": True,
        "open-mode": "append",
        "chdir": directory,
        "output": batch.folder.resolve() / "%a.log",
    }
    lines = ["#!/bin/bash"]
    for name, value in options.items():
        if value is True:
            lines.append(f"#SBATCH --{name}")
        elif value is not None and value != "":
            lines.append(f"#SBATCH --{name}={shlex.quote(str(value))}")
    lines += [
        "",
        "trap '' USR2  # until slurm.job listens: the signal's default action would end the job",
        *site.setup,
        "export PYTHONSAFEPATH=1",
        f'export PYTHONPATH={shlex.quote(str(HOME))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
        f"exec {shlex.quote(sys.executable)} -m slurm.job {shlex.quote(str(batch.folder.resolve()))}",
    ]
    return "\n".join(lines) + "\n"


def _ranges(tasks: list[int]) -> str:
    """0-2,5 for 0, 1, 2 and 5."""
    parts: list[list[int]] = []
    for task in tasks:
        if parts and parts[-1][-1] == task - 1:
            parts[-1].append(task)
        else:
            parts.append([task])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
