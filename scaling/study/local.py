"""The local launcher: runs of a study as processes of this machine, as many at a time as it allows."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from scaling import rundir
from scaling.attempt import at_work, mark
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.study.failures import RUN_LOG, headline
from scaling.study.folders import write_configs
from scaling.study.plan import Plan, Row, run_state
from scaling.study.progress import Progress

HOME = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.2
STOP_SECONDS = 600.0
LOCK = ".launch.lock"
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # loaded before any fork


@dataclass
class Worker:
    """A running process, the slot (a share of the cores, or a GPU) that it holds, and the run's status before it."""

    process: subprocess.Popen[bytes]
    slot: int
    before: dict[str, Any] | None


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def slots() -> int:
    """Runs at a time: one a GPU, else one a core that this process may use."""
    return len(gpus()) or len(os.sched_getaffinity(0))


def launch(plan: Plan, root: Path, jobs: int | None, *, again: bool = False) -> tuple[dict[str, int], bool]:
    """Runs everything in `plan` that is neither completed nor (save `again`) cancelled.

    Returns how many ended in each state, and whether it was asked to stop. Parents go before their children; a failed
    parent blocks its children and nothing else. Stop signals are passed on: the runs save, and the same command
    continues later.
    """
    folder = root / plan.study.name
    with _only_launcher(folder), Progress(plan, folder) as progress:
        left_alone = ("completed",) if again else ("completed", "cancelled")
        scheduler = Scheduler(plan, folder, jobs or slots(), progress, left_alone)
        write_configs(scheduler.waiting.values(), folder)
        scheduler.run()
    counts: dict[str, int] = {}
    for row in plan.rows:
        state = run_state(folder / row.config.run)
        counts[state] = counts.get(state, 0) + 1
    return counts, scheduler.stopping


@contextmanager
def _only_launcher(folder: Path) -> Iterator[None]:
    """Two launchers of one study on this machine would start its runs twice; the second is refused."""
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("STUDY", folder.name, "a study that no other local launch is running") from None
        lock.truncate(0)
        lock.write(f"{socket.gethostname()} {os.getpid()}\n")
        lock.flush()
        yield


def launcher(folder: Path) -> tuple[str, int] | None:
    """(host, process id) of the local launch that is running this study; None where none is."""
    if not (folder / LOCK).exists():
        return None
    with (folder / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            host, pid = lock.read().split()
            return host, int(pid)
    return None


def stop(folder: Path) -> None:
    """Asks the local launch of this study, if there is one, to end, and waits until its runs have saved."""
    found = launcher(folder)
    if found is None:
        return
    host, pid = found
    if host != socket.gethostname():
        raise UserError("STUDY", folder.name, f"to be cancelled on {host}, where process {pid} runs it")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while launcher(folder) is not None:
        if time.monotonic() > deadline:
            raise UserError("STUDY", folder.name, f"a launch that ends: process {pid} is still saving")
        time.sleep(POLL_SECONDS)


class Scheduler:
    """Keeps every slot busy with the run whose chain of stages is the longest."""

    def __init__(
        self, plan: Plan, folder: Path, jobs: int, progress: Progress, left_alone: tuple[str, ...] = ("completed",)
    ) -> None:
        self.folder = folder
        self.jobs = jobs
        self.progress = progress
        self.stopping = False
        self.workers: dict[str, Worker] = {}
        self.completed = {row.config.run for row in plan.rows if row.state == "completed"}
        self.waiting = {row.config.run: row for row in plan.rows if row.state not in left_alone}
        self.chain = _chain_costs(plan.rows)

    def run(self) -> None:
        """Until nothing runs and nothing more can start. An error here asks the runs to save, and waits for them."""
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while self.workers or (self._ready() and not self.stopping):
                self._start_ready()
                self._collect_finished()
                self.progress.refresh(list(self.workers))
                time.sleep(POLL_SECONDS)
        finally:
            for worker in self.workers.values():
                worker.process.terminate()
            for worker in self.workers.values():
                worker.process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Passes the request on; the loop ends when every run has saved."""
        self.stopping = True
        for worker in self.workers.values():
            worker.process.send_signal(signal.SIGTERM)

    def _ready(self) -> list[Row]:
        """Waiting runs whose parent is completed, longest chain first."""
        ready = [row for row in self.waiting.values() if row.config.parent in self.completed | {None}]
        return sorted(ready, key=lambda row: -self.chain[row.config.run])

    def _start_ready(self) -> None:
        for row in self._ready():
            free = sorted(set(range(self.jobs)) - {worker.slot for worker in self.workers.values()})
            if not free or self.stopping:
                return
            self._start(row, free[0])

    def _start(self, row: Row, slot: int) -> None:
        del self.waiting[row.config.run]
        self.workers[row.config.run] = worker = start(row.config, self.folder, slot, self.jobs)
        if self.stopping:  # asked while the process was being made: the handler did not know it
            worker.process.send_signal(signal.SIGTERM)
        self.progress.started(row)

    def _collect_finished(self) -> None:
        for name, worker in list(self.workers.items()):
            if worker.process.poll() is None:
                continue
            del self.workers[name]
            run = self.folder / name
            state = run_state(run)
            silent = state in ("running", "planned") or rundir.read_json(run / rundir.STATUS) == worker.before
            elsewhere = ""
            if silent and state != "completed":
                status = worker.process.returncode
                words = f"the process ended with exit status {status}; see {rundir.LOGS}/"
                if at_work(run, ended=worker.process.pid):
                    elsewhere = f"elsewhere, as its status says; here {words}"
                else:
                    early = self.stopping and status == -signal.SIGTERM  # it was only starting
                    state = "stopped" if early else "failed"
                    mark(run, state, error=words)
            self.progress.finished(name, state, elsewhere)
            if state == "completed":
                self.completed.add(name)
            else:
                self._block_children(name, state)

    def _block_children(self, parent: str, state: str) -> None:
        for name, row in list(self.waiting.items()):
            if row.config.parent == parent:
                del self.waiting[name]
                if state == "failed":
                    mark(self.folder / name, "blocked", error=f"its parent {parent} {state}")
                    self.progress.finished(name, "blocked")
                self._block_children(name, state)


def start(config: RunConfig, study: Path, slot: int, jobs: int) -> Worker:
    """Starts one run as its own process, with its share of the cores and, where there are any, a GPU; output in logs/.

    More runs than GPUs share these in turn.
    """
    folder = study / config.run
    logs = folder / rundir.LOGS
    logs.mkdir(exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = os.environ | {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
    }
    if devices := gpus():
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    before = rundir.read_json(folder / rundir.STATUS)
    command = [sys.executable, "-m", "scaling.cli", "run", str(folder / rundir.CONFIG)]
    log: IO[bytes]
    with (logs / RUN_LOG).open("ab") as log:
        log.write(headline(f"on {socket.gethostname()}"))
        log.flush()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which passes it on once
            preexec_fn=_end_with_parent,
        )
    return Worker(process, slot, before)


def _end_with_parent() -> None:
    """A killed launcher takes its runs with it: the kernel sends them SIGTERM, on which they save."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _chain_costs(rows: list[Row]) -> dict[str, float]:
    """FLOPs of each run and of the longest chain of stages behind it."""
    costs: dict[str, float] = {}
    for row in reversed(rows):
        own = (row.cost.train_flops or 0.0) + (row.cost.scan_flops or 0.0)
        behind = [costs[child.config.run] for child in rows if child.config.parent == row.config.run]
        costs[row.config.run] = own + max(behind, default=0.0)
    return costs
