"""What this cluster wants of every job: a small YAML file, written once a site.

partition: low            account, qos, constraint: as sbatch has them
time: "24:00:00"          the longest job allowed: a longer run is carried out in several jobs
gpus: true                one GPU a rank; false: ranks on CPUs
device: H100              what a GPU is: runs that do not fit its memory are refused
cpus_per_rank: 8
memory: 200G              a node
exclude: [n3]             nodes that get no job
modules: [cuda/13.0]      loaded before the run
setup: [ulimit -n 65536]  lines of shell before the run, after the modules
container: apptainer exec --nv arm.sif    stands before every rank's command
python: python3           the interpreter of the ranks, as the container has it; default: the launching one
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from scaling.errors import UserError
from scaling.reading import load_yaml, merge
from scaling.timelimit import minutes


@dataclass(frozen=True)
class Site:
    """The cluster file. Empty values leave the choice to Slurm."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: str = ""
    gpus: bool = True
    device: str = ""
    cpus_per_rank: int = 1
    memory: str = ""
    exclude: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    container: str = ""
    python: str = ""


def read_site(path: Path | None) -> Site:
    """The site in `path`, all defaults without one; UserError names what is not valid."""
    site: Site = merge(Site, load_yaml(path)) if path else Site()
    if site.time:
        minutes(site.time, "time")
    if site.cpus_per_rank < 1:
        raise UserError("cpus_per_rank", site.cpus_per_rank, "1 or more")
    _check_memory("memory", site.memory)
    return site


def adjusted(site: Site, exclude_nodes: str, memory: str) -> Site:
    """The site for one retry: further nodes (in Slurm's short form) kept off, another memory; "" changes nothing."""
    _check_memory("--memory", memory)
    excluded = [*site.exclude, *([exclude_nodes] if exclude_nodes else [])]
    return replace(site, exclude=excluded, memory=memory or site.memory)


def _check_memory(name: str, memory: str) -> None:
    if memory and not re.fullmatch(r"\d+[KMGT]?", memory):
        raise UserError(name, memory, "a size for each node such as 200G")
