"""armscale run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.errors import UserError
from scaling.rundir import DEFAULT_ROOT

if TYPE_CHECKING:
    from scaling.config import RunConfig

EXAMPLE = "Example: armscale run runs/quickstart/ar-mamba-pico-pretrain-s0-1a2b3c4d/config.yaml train.log_every=1"


def run(
    config: Annotated[Path, typer.Argument(help="A run's config.yaml, in its run folder or anywhere else.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Trace some steps into logs/trace-rank-N.json.")] = False,
    root: Annotated[Path, typer.Option(help="Where run folders go.")] = Path(DEFAULT_ROOT),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="A step without memory, data or GPUs: what one rank would need.")
    ] = False,
    ranks: Annotated[int, typer.Option(min=0, help="--dry-run: of the run; those of its resources if 0.")] = 0,
    device: Annotated[str, typer.Option(help="--dry-run: the device that it must fit, such as H100.")] = "",
) -> None:
    """Train, evaluate and sum up one run: alone, under torchrun, or as a Slurm task. Resumes what was interrupted."""
    from scaling.attempt import Superseded
    from scaling.execute import execute
    from scaling.reading import load_run
    from scaling.start import run_folder
    from scaling.stop import EXIT_STOPPED, Stopped

    for option, value in (("--ranks", ranks), ("--device", device)):
        if value and not dry_run:
            raise UserError(option, value, "nothing without --dry-run: a run's ranks and devices are its launcher's")
    loaded = load_run(config, overrides)
    if dry_run:
        _try_out(loaded, ranks or loaded.resources.ranks, device)
        return
    folder = run_folder(loaded, config.resolve(), root)
    try:
        summary = execute(loaded, folder, profile=profile)
    except Stopped as stopped:
        typer.echo(f"stopped: {stopped}; the same command continues", err=True)
        raise typer.Exit(EXIT_STOPPED) from None
    except Superseded as superseded:
        typer.echo(f"stopped: {superseded}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"completed: {summary}")


def _try_out(config: RunConfig, ranks: int, device: str) -> None:
    """Says what one of `ranks` needs; UserError where that is more than `device` has."""
    from scaling import dryrun
    from scaling.devices import usable_memory
    from scaling.memory import memory
    from scaling.study.plan import data_facts

    usable = usable_memory(device) if device else None
    classes = data_facts(config.data).classes or 1000
    estimate = memory(config, ranks, classes).peak
    told = f"{config.engine}, {config.strategy} {config.size} {config.stage}, {ranks} ranks"
    if why := dryrun.obstacle(config):
        peak = estimate
        typer.echo(f"{told}: {peak / 2**30:.2f} GiB a rank at the peak, by formula alone: {why}")
    else:
        done = dryrun.dry_run(config, ranks, classes)
        peak = done.peak
        typer.echo(
            f"{told}: {peak / 2**30:.2f} GiB a rank at the peak of a step, {done.resident / 2**30:.2f} between steps; "
            f"{estimate / 2**30:.2f} by formula ({done.seconds:.0f} s)"
        )
    if usable is None:
        return
    if peak > usable:
        cure = "a smaller micro_batch, checkpointing, fsdp over more GPUs, or a larger device"
        raise UserError("--device", device, cure, why=f"{usable / 2**30:.1f} GiB can be used of it")
    typer.echo(f"fits {device}: {usable / 2**30:.1f} GiB can be used of it")


run.__doc__ = f"{run.__doc__}\n\n{EXAMPLE}"
