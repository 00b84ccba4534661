"""What a sweep needs of a cluster, tried before the first run: by asking Slurm, and by one short job on its nodes.

The job is a Python function whose results come back, which is what submitit is made for. Runs are not submitted with
it: their jobs must be found again after a launch was cut off, and requeue only when every rank has committed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from scaling.errors import UserError
from scaling.timelimit import minutes
from slurm.queue import ControllerError, call, largest_array, read_attempts, read_jobs, read_settings
from slurm.site import Site

GOOD, NOTE, BAD = "good", "note", "bad"
JOB_MINUTES: Final = 5
SIGNAL_SECONDS: Final = 60.0
WAIT_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Finding:
    """One line: good, a note on what this cluster cannot do, or bad: a sweep would fail."""

    level: str
    subject: str
    text: str


@dataclass(frozen=True)
class Seen:
    """What a task saw on its node."""

    node: str
    token: str
    scontrol: str | None
    gpus_granted: int
    gpus_seen: int
    signalled: bool


def probe(folder: Path) -> dict[str, Any]:
    """Runs as a task of the job: reads the shared folder, counts devices, says that it is ready, awaits a signal."""
    heard: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, _: heard.append(number))
    import torch

    (folder / f"ready-{os.environ['SLURM_PROCID']}").write_text(socket.gethostname(), encoding="utf-8")
    deadline = time.monotonic() + SIGNAL_SECONDS
    while not heard and time.monotonic() < deadline:
        time.sleep(0.2)
    seen = Seen(
        node=socket.gethostname(),
        token=(folder / "token").read_text(encoding="utf-8"),
        scontrol=shutil.which("scontrol"),
        gpus_granted=int(os.environ.get("SLURM_GPUS_ON_NODE", "0")),
        gpus_seen=torch.cuda.device_count(),
        signalled=bool(heard),
    )
    return asdict(seen)


def preflight(site: Site, root: Path, nodes: int) -> list[Finding]:
    """All findings. Raises UserError where there is no Slurm, or it refuses the job."""
    settings = read_settings()
    findings = [*judge_settings(settings), *_judge_partition(site), _accounting()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".preflight-") as name:
            findings += judge_nodes(*_run_job(site, Path(name).resolve(), nodes), site, nodes)
    except OSError as error:
        raise UserError("--root", str(root), "a folder that can be written", why=error.strerror or "") from None
    return findings


def judge_settings(settings: dict[str, str]) -> list[Finding]:
    """What the controller's configuration means for a sweep."""
    found = [Finding(GOOD, "arrays", f"of at most {largest_array(settings)} runs; larger sweeps are split")]
    mode = settings.get("PreemptMode", "OFF")
    asks = "preempt_send_user_signal" in settings.get("SlurmctldParameters", "")
    if mode == "OFF":
        found.append(Finding(GOOD, "preemption", "off"))
    elif asks:
        found.append(Finding(GOOD, "preemption", f"{mode}, announced by our own signal: nothing is lost"))
    else:
        text = f"{mode}, announced by SIGTERM to the tasks alone: they save, if GraceTime is long enough"
        found.append(Finding(NOTE, "preemption", text))
    if settings.get("JobRequeue") == "0":
        found.append(Finding(NOTE, "requeue", "off by default here; our jobs ask for it"))
    return found


def _judge_partition(site: Site) -> list[Finding]:
    """Whether the site's partition is there and takes jobs as long as the site says."""
    where = ["--partition", site.partition] if site.partition else []
    listing = call("sinfo", "--noheader", *where, "--format=%R|%a|%l|%D|%G")
    if listing.returncode != 0:
        raise ControllerError(listing.stderr.strip())
    rows = [line.split("|") for line in listing.stdout.splitlines()]
    if not rows:
        return [Finding(BAD, "partition", f"{site.partition or 'the default one'} is not there")]
    found = []
    for name, state, limit, count, devices in rows:
        told = f"{state}, {count} nodes, {devices}, jobs of at most {limit}"
        found.append(Finding(GOOD if state == "up" else BAD, f"partition {name}", told))
        if site.time and limit != "infinite" and minutes(limit, "limit") < minutes(site.time, "time"):
            found.append(Finding(BAD, f"partition {name}", f"ends jobs after {limit}, the site file says {site.time}"))
    return found


def _accounting() -> Finding:
    if read_attempts(["1"]) is None:
        return Finding(NOTE, "sacct", "does not answer: ended jobs are known by squeue and the run folders alone")
    return Finding(GOOD, "sacct", "answers")


def judge_nodes(seen: list[Seen], token: str, site: Site, nodes: int) -> list[Finding]:
    """What the tasks of the job saw."""
    names = ", ".join(sorted(task.node for task in seen))
    found = [Finding(GOOD if len(seen) == nodes else BAD, "nodes", f"{len(seen)} of {nodes} answered: {names}")]
    shared = [task.node for task in seen if task.token == token]
    told = f"visible from {len(shared)} of {len(seen)} nodes"
    found.append(Finding(GOOD if len(shared) == len(seen) else BAD, "shared folder", told))
    without = [task.node for task in seen if task.scontrol is None]
    if without:
        text = f"missing on {', '.join(without)}: a job cannot requeue itself; `study launch` again continues"
        found.append(Finding(BAD, "scontrol", text))
    else:
        found.append(Finding(GOOD, "scontrol", "on every node"))
    deaf = [task.node for task in seen if not task.signalled]
    text = f"SIGUSR2 did not reach {', '.join(deaf)}" if deaf else "SIGUSR2 reaches every task"
    found.append(Finding(BAD if deaf else GOOD, "signals", text))
    if site.gpus:
        for task in seen:
            level = GOOD if task.gpus_seen >= max(1, task.gpus_granted) else BAD
            text = f"torch sees {task.gpus_seen} of {task.gpus_granted} granted GPUs"
            found.append(Finding(level, f"node {task.node}", text))
    return found


def _run_job(site: Site, folder: Path, nodes: int) -> tuple[list[Seen], str]:
    """Runs `probe` on `nodes` nodes; what came back, and the token that every node should have read."""
    try:
        import submitit
    except ImportError:
        raise UserError("submitit", "not installed", "pip install 'armscale[slurm]'") from None
    token = os.urandom(8).hex()
    (folder / "token").write_text(token, encoding="utf-8")
    with submitit.helpers.clean_env():
        executor = submitit.SlurmExecutor(folder / "submitit")
        executor.update_parameters(**_parameters(site, nodes))
        try:
            job = executor.submit(probe, folder)
        except submitit.core.utils.FailedJobError as error:
            raise UserError("sbatch", site.partition, "options that this cluster takes", why=str(error)) from None
    results = [job.task(rank).paths.result_pickle for rank in range(nodes)]
    deadline, asked = time.monotonic() + WAIT_SECONDS, False
    try:
        # Not job.wait(), which asks accounting: without it that would wait for ever.
        while not all(path.exists() for path in results) and time.monotonic() < deadline:
            if not asked and len(list(folder.glob("ready-*"))) == nodes:
                call("scancel", "--signal=USR2", job.job_id)
                asked = True
            if not _alive(job.job_id) and not all(path.exists() for path in results):
                time.sleep(2)  # a shared folder may lag
                break
            time.sleep(1)
    finally:
        call("scancel", job.job_id)
    answered = [rank for rank, path in enumerate(results) if path.exists()]
    return [Seen(**job.task(rank).result()) for rank in answered], token


def _parameters(site: Site, nodes: int) -> dict[str, Any]:
    """The site's wishes in submitit's words."""
    more = {"exclude": ",".join(site.exclude), "qos": site.qos, "constraint": site.constraint, "account": site.account}
    return {
        "job_name": "armscale-doctor", "time": JOB_MINUTES, "nodes": nodes, "ntasks_per_node": 1,
        "cpus_per_task": site.cpus_per_rank, "gpus_per_node": 1 if site.gpus else None,
        "partition": site.partition or None, "mem": site.memory or None,
        "setup": [*(f"module load {module}" for module in site.modules), *site.setup],
    } | {name: value for name, value in more.items() if value}  # fmt: skip


def _alive(job: str) -> bool:
    try:
        found = read_jobs([job]).get(job)
    except ControllerError:
        return True
    return found is None or found.alive
