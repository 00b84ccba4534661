"""What this cluster wants of every job: a small YAML file, written once a site.

partition: low            account, qos, constraint: as sbatch has them
time: "24:00:00"          the longest job allowed: a longer run is carried out in several jobs
gpus: true                one GPU a rank; false: ranks on CPUs
cpus_per_rank: 8
memory: 200G              a node
setup: [module load cuda] lines of shell before the run
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from scaling.errors import UserError
from scaling.reading import load_yaml, merge


@dataclass(frozen=True)
class Site:
    """The cluster file. Empty values leave the choice to Slurm."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: str = ""
    gpus: bool = True
    cpus_per_rank: int = 1
    memory: str = ""
    setup: list[str] = field(default_factory=list)


def read_site(path: Path | None) -> Site:
    """The site in `path`, all defaults without one; UserError names what is not valid."""
    site: Site = merge(Site, load_yaml(path)) if path else Site()
    if site.time:
        minutes(site.time, "time")
    if site.cpus_per_rank < 1:
        raise UserError("cpus_per_rank", site.cpus_per_rank, "1 or more")
    return site


def minutes(time: str, name: str) -> int:
    """A limit in Slurm's forms (minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]])."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not found:
        raise UserError(name, time, "a time such as 90, 04:00:00 or 2-12:00:00")
    days, *parts = (int(part) if part else 0 for part in found.groups())
    if found[1] is not None or found[4] is not None:
        hours, minute, seconds = parts
    else:
        hours, minute, seconds = 0, parts[0], parts[1]
    return max(1, (days * 24 + hours) * 60 + minute + (seconds > 0))
