"""armscale study plan | launch | status | cancel | retry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.errors import UserError
from scaling.rundir import DEFAULT_ROOT

if TYPE_CHECKING:
    from scaling.study.plan import Plan

app = typer.Typer(help="Plan, launch and watch a study.", no_args_is_help=True)

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, its folder or name under the root.")]
RootOption = Annotated[Path, typer.Option(help="Where run folders go.")]
SiteOption = Annotated[
    Path | None, typer.Option(help="slurm: what this site wants of every job (partition, account, time, gpus, setup).")
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Runs at a time: local, default one a GPU or core; slurm, of one array, default no limit."
    ),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the end (local launches always do).")]
CLUSTERS = ("local", "slurm")


@app.command(epilog="Example: armscale study plan quickstart")
def plan(study: StudyArgument, root: RootOption = Path(DEFAULT_ROOT)) -> None:
    """The tree of runs: parameters, FLOPs, memory, device hours, and what is already done; settings that differ."""
    from scaling.cli.tables import plan_table, settings_table, show

    planned = _plan(study, root)
    show(plan_table(planned))
    show(settings_table(planned))


@app.command(epilog="Example: armscale study launch quickstart --cluster local")
def launch(
    study: StudyArgument,
    cluster: Annotated[
        str, typer.Option(help="local: processes of this machine, in the foreground; slurm: jobs.")
    ] = "local",
    root: RootOption = Path(DEFAULT_ROOT),
    site: SiteOption = None,
    jobs: JobsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would start, start nothing.")] = False,
    wait: WaitOption = False,
) -> None:
    """Run everything in the study that is not completed. Interrupted or repeated, it continues where it was."""
    from scaling.cli.tables import plan_table, show
    from scaling.study import local
    from scaling.study.folders import write_folders
    from scaling.study.plan import require_data

    if cluster not in CLUSTERS:
        raise UserError("--cluster", cluster, CLUSTERS)
    planned = _plan(study, root)
    if dry_run and cluster == "local":
        show(plan_table(planned))
        return
    require_data(planned)
    if cluster == "slurm":
        _submit(planned, root, site, jobs, dry_run=dry_run, wait=wait)
        return
    while True:
        folder = write_folders(planned, root)
        counts = local.launch(planned, root, jobs)
        followed = _plan(study, root)
        if followed.waiting == planned.waiting:
            break
        planned = followed  # trials are done: the final runs have their values now
    _tell_counts(planned, folder, counts)


@app.command(epilog="Example: armscale study status quickstart")
def status(study: StudyArgument, root: RootOption = Path(DEFAULT_ROOT)) -> None:
    """Where every run stands, from the run folders and, where runs were submitted to it, from Slurm."""
    from scaling.cli.tables import show, status_table

    planned = _plan(study, root)
    if not (root / planned.study.name / "slurm").is_dir():
        show(status_table(planned, root))
        return
    from slurm.queue import ControllerError
    from slurm.states import read_standings, with_states

    try:
        standings = read_standings(planned, root)
    except (UserError, ControllerError) as error:
        typer.echo(f"from the run folders alone, as Slurm does not answer: {error}", err=True)
        show(status_table(planned, root))
        return
    reasons = {run: standing.reason for run, standing in standings.items()}
    show(status_table(with_states(planned, standings), root, reasons))


@app.command(epilog="Example: armscale study cancel quickstart")
def cancel(study: StudyArgument, root: RootOption = Path(DEFAULT_ROOT)) -> None:
    """Cancel every run of a study on Slurm that is not completed; what they have saved stays. `retry` goes on."""
    from slurm.cancel import cancel as cancel_runs
    from slurm.queue import ControllerError

    planned = _plan(study, root)
    try:
        cancelled = cancel_runs(planned, root)
    except ControllerError as error:
        raise _no_answer(error) from None
    typer.echo(f"{planned.study.name}: {len(cancelled)} of {len(planned.rows)} runs cancelled")


@app.command(epilog="Example: armscale study retry quickstart --site more-memory.yaml")
def retry(
    study: StudyArgument,
    root: RootOption = Path(DEFAULT_ROOT),
    site: SiteOption = None,
    jobs: JobsOption = None,
    wait: WaitOption = False,
) -> None:
    """Submit to Slurm again what failed, was blocked or cancelled; each goes on from its last checkpoint."""
    from scaling.study.plan import require_data

    planned = _plan(study, root)
    require_data(planned)
    _submit(planned, root, site, jobs, wait=wait, again=("cancelled",))


def _submit(
    planned: Plan,
    root: Path,
    site: Path | None,
    jobs: int | None,
    *,
    dry_run: bool = False,
    wait: bool = False,
    again: tuple[str, ...] = (),
) -> None:
    from scaling.study.plan import plan_study
    from slurm import launcher
    from slurm.queue import ControllerError
    from slurm.site import read_site
    from slurm.states import wait_for_end

    defaults = read_site(site)
    if dry_run:
        typer.echo("\n".join(launcher.scripts(planned, root, defaults, limit=jobs)))
        return
    try:
        batches = launcher.launch(planned, root, defaults, limit=jobs, again=again)
    except ControllerError as error:
        raise _no_answer(error) from None
    for batch in batches:
        typer.echo(f"job {batch.job}: {len(batch.runs)} runs, {batch.folder}")
    submitted = sum(len(batch.runs) for batch in batches)
    typer.echo(f"{planned.study.name}: {submitted} of {len(planned.rows)} runs submitted{_followers(planned)}")
    if not wait:
        return
    counts = wait_for_end(planned, root)
    followed = plan_study(planned.study, root)
    if followed.waiting < planned.waiting:  # trials are done: the final runs have their values now
        _submit(followed, root, site, jobs, wait=True, again=again)
    else:
        _tell_counts(planned, root / planned.study.name, counts)


def _no_answer(error: Exception) -> typer.Exit:
    """Slurm is away, which is nobody's mistake: one message, exit status 1."""
    typer.echo(f"armscale: Slurm does not answer, the same command continues later: {error}", err=True)
    return typer.Exit(1)


def _tell_counts(planned: Plan, folder: Path, counts: dict[str, int]) -> None:
    """How many runs ended how; exit status 1 unless all are completed."""
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    typer.echo(f"{planned.study.name}: {told} of {len(planned.rows)} runs in {folder}{_followers(planned)}")
    if set(counts) != {"completed"}:
        raise typer.Exit(1)


def _followers(planned: Plan) -> str:
    """What a launch will still start when trials are completed."""
    return f"; {planned.waiting} arms wait for their trials, the same command continues" if planned.waiting else ""


def _plan(study: str, root: Path) -> Plan:
    from scaling.study.plan import plan_study
    from scaling.study.table import find_study, load_study

    return plan_study(load_study(find_study(study, root)), root)
