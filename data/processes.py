"""Worker processes that import this installation and nothing from the working directory, and die with their parent."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util  # its own hook at exit is to run after ours
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypeVar

Common = TypeVar("Common")
Task = TypeVar("Task")
Result = TypeVar("Result")


@contextmanager
def sheltered() -> Iterator[None]:
    """Processes started inside import the packages from where this one did, and are deaf to SIGUSR1 and SIGUSR2.

    The five packages have everyday names, which a folder of the user's must not shadow. And Slurm signals every process
    of a step: the trainer answers, while its workers, their fork server and Python's resource tracker go on. The
    signals are blocked, not ignored, so that one for this process is only late.
    """
    before = {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PYTHONPATH")}
    home = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (home, before["PYTHONPATH"]) if part)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def worker_context() -> BaseContext:
    """How workers start: forked from a small server, which has imported torch once and has neither CUDA nor threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.forkserver"])
    return context


def exit_with_parent() -> None:
    """Ends this process at once when its parent is gone: after a kill -9 nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="exit-with-parent", daemon=True).start()


@atexit.register
def _kill_workers_left() -> None:
    """Ends the loader's workers that an error on its way out of this process still holds.

    Python ends those by SIGTERM, to which ours are deaf, and would wait for them for ever.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def each(
    work: Callable[[Common, Task], Result], common: Common, tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    """(task, work(common, task)) as they get done, in this process or in `workers` others.

    `common` goes to every worker once. Leaving early, or an error in a worker, cancels what has not begun.
    """
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield task, work(common, task)
        return
    context = worker_context()
    with sheltered(), ProcessPoolExecutor(min(workers, len(tasks)), context, _begin, (work, common)) as pool:
        futures = {pool.submit(_do, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_job: tuple[Callable[[Any, Any], Any], Any]  # of a pool's process: what to do, and what all tasks have in common


def _begin(work: Callable[[Any, Any], Any], common: Any) -> None:
    global _job
    exit_with_parent()
    _job = (work, common)


def _do(task: Any) -> Any:
    work, common = _job
    return work(common, task)
