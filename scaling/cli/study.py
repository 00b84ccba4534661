"""armscale study plan | launch | status | cancel | retry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.errors import UserError
from scaling.rundir import DEFAULT_ROOT, STUDY

if TYPE_CHECKING:
    from scaling.study.plan import Plan
    from slurm.site import Site

app = typer.Typer(
    help="Plan, launch and watch a study.", epilog="Example: armscale study plan quickstart", no_args_is_help=True
)

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, its folder or name under the root.")]
RootOption = Annotated[Path, typer.Option(help="Where run folders go.")]
SiteOption = Annotated[
    Path | None, typer.Option(help="slurm: what this site wants of every job (partition, account, modules...).")
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Runs at a time: local, default one a GPU or core; slurm, of one array, default no limit."
    ),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the end (local launches always do).")]
CLUSTERS = ("local", "slurm")
ClusterOption = Annotated[str, typer.Option(help="local: processes of this machine, in the foreground; slurm: jobs.")]


@app.command(epilog="Example: armscale study plan quickstart --price 2.5")
def plan(
    study: StudyArgument,
    root: RootOption = Path(DEFAULT_ROOT),
    measured: Annotated[
        list[Path] | None,
        typer.Option(help="Where rates were measured: JSON of `bench step`, or a folder of runs. May be repeated."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="The device to plan for, such as H100: its rates count alone, and runs must fit it.")
    ] = "",
    price: Annotated[float | None, typer.Option(min=0.0, help="Of one device hour.")] = None,
) -> None:
    """The tree of runs: FLOPs, memory, device hours, cost, what is done, running or queued; settings that differ."""
    from scaling.cli.status import read_status
    from scaling.cli.tables import plan_table, settings_table, show
    from scaling.study.expect import read_measured
    from scaling.study.fit import require_fit

    planned = read_status(_plan(study, root), root).plan
    show(plan_table(planned, read_measured(planned, root, measured or [], device), price))
    show(settings_table(planned))
    if device:
        require_fit(planned, device)


@app.command(epilog="Example: armscale study launch quickstart --cluster local")
def launch(
    study: StudyArgument,
    cluster: ClusterOption = "local",
    root: RootOption = Path(DEFAULT_ROOT),
    site: SiteOption = None,
    jobs: JobsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would start, start nothing.")] = False,
    emit: Annotated[
        Path | None, typer.Option(help="slurm: write plain sbatch files into this folder and submit nothing.")
    ] = None,
    wait: WaitOption = False,
) -> None:
    """Run everything in the study that is not completed. Interrupted or repeated, it continues where it was."""
    from scaling.study.plan import require_data

    planned = _plan(study, root)
    if _cluster(cluster, emit) == "local":
        if dry_run:
            from scaling.cli.tables import plan_table, show
            from scaling.study.expect import Measured

            show(plan_table(planned, Measured(), None))
            return
        require_data(planned)
        _run_here(planned, root, jobs)
        return
    from scaling.study.fit import require_fit
    from slurm import launcher
    from slurm.emit import SUBMIT
    from slurm.emit import emit as write_scripts
    from slurm.queue import ControllerError
    from slurm.site import read_site

    require_data(planned)
    defaults = read_site(site)
    if defaults.device:
        require_fit(planned, defaults.device)
    if not dry_run and emit is None:
        _submit(planned, root, defaults, jobs, wait=wait)
        return
    try:
        if emit is None:
            typer.echo("\n".join(launcher.scripts(planned, root, defaults, limit=jobs)))
            return
        scripts = write_scripts(planned, root, defaults, emit, limit=jobs)
    except ControllerError as error:
        raise _no_answer(error) from None
    for script in scripts:
        typer.echo(str(script))
    told = f"nothing is submitted; {emit / SUBMIT} submits them in order"
    typer.echo(told if scripts else "no run is left to submit: see `armscale study status`")


@app.command(epilog="Example: armscale study status quickstart --watch")
def status(
    study: StudyArgument,
    root: RootOption = Path(DEFAULT_ROOT),
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking until nothing is queued or running.")] = False,
) -> None:
    """Where every run stands, what failed and why, from the run folders and, where runs were submitted, from Slurm."""
    from scaling.cli import status as shown
    from scaling.cli.tables import show

    planned = _plan(study, root)
    if watch:
        shown.watch(lambda: shown.read_status(planned, root), root)
    else:
        show(shown.show_status(shown.read_status(planned, root), root))


@app.command(epilog="Example: armscale study cancel quickstart")
def cancel(study: StudyArgument, root: RootOption = Path(DEFAULT_ROOT)) -> None:
    """Cancel every run of a study that is not completed; what they have saved stays. `retry` goes on."""
    from scaling.study import local
    from scaling.study.folders import mark_cancelled

    planned = _plan(study, root)
    folder = root / planned.study.name
    local.stop(folder)
    if not (folder / "slurm").is_dir():
        cancelled = mark_cancelled(planned, folder)
    else:
        from slurm.cancel import cancel as cancel_runs
        from slurm.queue import ControllerError

        try:
            cancelled = cancel_runs(planned, root)
        except ControllerError as error:
            raise _no_answer(error) from None
    typer.echo(f"{planned.study.name}: {len(cancelled)} of {len(planned.rows)} runs cancelled")


@app.command(epilog="Example: armscale study retry quickstart train.micro_batch=32 --exclude-nodes n3 --memory 400G")
def retry(
    study: StudyArgument,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value ...]", help="For the runs that failed; no field that changes a result."),
    ] = None,
    cluster: Annotated[str, typer.Option(help="local or slurm; default: where the study was launched.")] = "",
    root: RootOption = Path(DEFAULT_ROOT),
    site: SiteOption = None,
    exclude_nodes: Annotated[str, typer.Option(help="slurm: nodes to keep off, as in n3,n[7-9].")] = "",
    memory: Annotated[str, typer.Option(help="slurm: memory of a node, as in 400G, in place of the site's.")] = "",
    jobs: JobsOption = None,
    wait: WaitOption = False,
) -> None:
    """Start again what failed, was blocked or cancelled; each goes on from its last checkpoint.

    Changes hold for this retry and the jobs that follow from it; for later launches put them into the study file.
    """
    from scaling.cli.status import read_status
    from scaling.study.changes import with_changes
    from scaling.study.plan import require_data

    planned = _plan(study, root)
    require_data(planned)
    folder = root / planned.study.name
    planned = with_changes(read_status(planned, root).plan, changes or [])
    cluster = cluster or ("slurm" if (folder / "slurm").is_dir() else "local")
    if _cluster(cluster, None) == "local":
        for option, value in {"--exclude-nodes": exclude_nodes, "--memory": memory}.items():
            if value:
                raise UserError(option, value, "nothing: a local launch takes this machine as it is")
        _run_here(planned, root, jobs, again=True)
        return
    from slurm.site import adjusted, read_site

    defaults = adjusted(read_site(site), exclude_nodes, memory)
    _submit(planned, root, defaults, jobs, wait=wait, again=("cancelled",))


def _cluster(cluster: str, emit: Path | None) -> str:
    if cluster not in CLUSTERS:
        raise UserError("--cluster", cluster, CLUSTERS)
    return "slurm" if emit is not None else cluster


def _run_here(planned: Plan, root: Path, jobs: int | None, *, again: bool = False) -> None:
    """As processes of this machine, unless Slurm has some of the runs."""
    from scaling.cli.status import read_status
    from scaling.study import local
    from scaling.study.folders import write_folders
    from scaling.study.plan import plan_study

    folder = root / planned.study.name
    if (folder / "slurm").is_dir():
        seen = read_status(planned, root)
        if seen.note:
            valid = f"slurm; or, when none of its jobs is left, a study without {folder / 'slurm'}"
            raise UserError("--cluster", "local", valid, why=f"runs were submitted to Slurm; {seen.note}")
        taken = sum(row.state in ("queued", "running") for row in seen.plan.rows)
        if taken:
            raise UserError("--cluster", "local", "slurm", why=f"{taken} runs are queued or running there")
    while True:
        write_folders(planned, root)
        counts, stopped = local.launch(planned, root, jobs, again=again)
        followed = plan_study(planned.study, root)
        if stopped or followed.waiting == planned.waiting:
            break
        planned = followed  # trials are done: the final runs have their values now
    _tell_counts(planned, folder, counts)


def _submit(
    planned: Plan, root: Path, site: Site, jobs: int | None, *, wait: bool = False, again: tuple[str, ...] = ()
) -> None:
    """To Slurm, unless a local launch is at it."""
    from scaling.study import local
    from scaling.study.plan import plan_study
    from slurm import launcher
    from slurm.queue import ControllerError
    from slurm.states import wait_for_end

    if (here := local.launcher(root / planned.study.name)) is not None:
        raise UserError("--cluster", "slurm", "local", why=f"process {here[1]} on {here[0]} runs the study")
    try:
        batches = launcher.launch(planned, root, site, limit=jobs, again=again)
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

    path = find_study(study, root)
    loaded = load_study(path)
    folder = root / loaded.name
    if path.name == STUDY and not Path(study).is_file() and path.parent.resolve() != folder.resolve():
        valid = "a study file, or a study's folder under --root"
        raise UserError("STUDY", study, valid, why=f"its study is called {loaded.name}, whose folder would be {folder}")
    return plan_study(loaded, root)
