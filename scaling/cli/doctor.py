"""armscale doctor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scaling.rundir import DEFAULT_ROOT

OPTIONAL = {
    "deepspeed": "engine deepspeed",
    "tensorboard": "TensorBoard beside metrics.jsonl",
    "nbclient": "running the notebooks",
}


def import_error(package: str) -> str:
    """Why `package` cannot be imported, "" if it can; in a process of its own, as it may print or fail in any way."""
    ended = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, text=True, check=False)
    return (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1] if ended.returncode else ""


def doctor(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Try the Slurm cluster instead, with one short job on its nodes.")
    ] = False,
    site: Annotated[Path | None, typer.Option(help="--cluster: what this site wants of every job.")] = None,
    root: Annotated[Path, typer.Option(help="--cluster: where run folders go, which the nodes must see.")] = Path(
        DEFAULT_ROOT
    ),
    nodes: Annotated[int, typer.Option(min=1, help="--cluster: nodes to try.")] = 2,
) -> None:
    """What this machine has, and which backend each part will use; or whether a cluster can carry out a sweep.

    Example: armscale doctor --cluster --site site.yaml
    """
    if cluster:
        _try_cluster(site, root, nodes)
        return
    import torch

    from models.scan import available_backends
    from scaling.environment import Rank, device_name

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("armscale", f"{metadata.version('armscale')}, torch {torch.__version__}")
    table.add_row("device", device_name(Rank().device))
    table.add_row("cores", f"{len(os.sched_getaffinity(0))} usable, torch uses {torch.get_num_threads()}")
    chosen = False
    for name, usable, reason in available_backends():
        mark = "-" if not usable else ("chosen by auto" if not chosen and name != "reference" else "usable")
        chosen |= usable and name != "reference"
        table.add_row(f"scan: {name}", f"{mark} {escape(f'({reason})') if reason else ''}")
    for package, purpose in OPTIONAL.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            table.add_row(package, f"not installed ({purpose})")
            continue
        broken = import_error(package) if package == "deepspeed" else ""
        table.add_row(package, f"{version} ({purpose})" + (f": cannot be imported, {escape(broken)}" if broken else ""))
    table.add_row("Slurm", shutil.which("sbatch") or "no sbatch on the path")
    Console(soft_wrap=True).print(table)


def _try_cluster(site: Path | None, root: Path, nodes: int) -> None:
    """One line a finding; exit status 1 where a sweep would fail."""
    from slurm.preflight import BAD, GOOD, NOTE, preflight
    from slurm.queue import ControllerError
    from slurm.site import read_site

    try:
        findings = preflight(read_site(site), root, nodes)
    except ControllerError as error:
        typer.echo(f"armscale: Slurm does not answer: {error}", err=True)
        raise typer.Exit(1) from None
    colours = {GOOD: "green", NOTE: "yellow", BAD: "red"}
    console = Console(soft_wrap=True)
    for finding in findings:
        console.print(f"[{colours[finding.level]}]{finding.level}[/] {escape(f'{finding.subject}: {finding.text}')}")
    if any(finding.level == BAD for finding in findings):
        raise typer.Exit(1)
