"""armscale run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.rundir import DEFAULT_ROOT

EXAMPLE = "Example: armscale run runs/quickstart/ar-mamba-pico-pretrain-s0-1a2b3c4d/config.yaml train.log_every=1"


def run(
    config: Annotated[Path, typer.Argument(help="A run's config.yaml, in its run folder or anywhere else.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Trace some steps into logs/trace-rank-N.json.")] = False,
    root: Annotated[Path, typer.Option(help="Where run folders go.")] = Path(DEFAULT_ROOT),
) -> None:
    """Train, evaluate and sum up one run: alone, under torchrun, or as a Slurm task. Resumes what was interrupted."""
    from scaling.reading import load_run
    from scaling.run import execute, run_folder
    from scaling.stop import EXIT_STOPPED, Stopped

    loaded = load_run(config, overrides)
    folder = run_folder(loaded, config.resolve(), root)
    try:
        summary = execute(loaded, folder, profile=profile)
    except Stopped as stopped:
        typer.echo(f"stopped: {stopped}; the same command continues", err=True)
        raise typer.Exit(EXIT_STOPPED) from None
    typer.echo(f"completed: {summary}")


run.__doc__ = f"{run.__doc__}\n\n{EXAMPLE}"
