"""The cluster's processes: every one lives in a network namespace of ours, which is how it is known and ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from slurm.cluster.layout import HOSTS, Host, Layout

NAMESPACES: Final = Path("/run/netns")
CLIENT_SECONDS: Final = 10
DAEMONS: Final = ("slurmctld", "slurmd", "slurmdbd")


class ClusterError(RuntimeError):
    """Something that should work on a good machine did not; the message holds the last lines of its log."""


def start(layout: Layout, host: Host, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
    """Starts `command`, a daemon that stays in the foreground, detached from us in the host's namespaces."""
    # nsenter and not `ip netns exec`, which would hide /sys/fs/cgroup. The name belongs to this process tree alone.
    enter = ["setsid", "--fork", "nsenter", f"--net={NAMESPACES / host.namespace}", "unshare", "--uts"]
    rename = ["sh", "-c", 'hostname "$0" && exec "$@"', host.name]
    with (layout.logs / f"{name}.out").open("ab") as output:
        subprocess.run(
            [*enter, *rename, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd="/",
            check=True,
            timeout=CLIENT_SECONDS,
        )


def client(layout: Layout, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a Slurm or database client, which would wait for ever for a daemon that does not answer."""
    environment = {**os.environ, "SLURM_CONF": str(layout.slurm_conf)}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=CLIENT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {CLIENT_SECONDS} s")


def wait_until(layout: Layout, what: str, ready: Callable[[], bool], seconds: float = 30) -> None:
    """Polls `ready`; raises ClusterError with the ends of the logs of `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            ends = (f"{log}:\n{_tail(log)}" for log in sorted(layout.logs.glob(f"{what}*")))
            raise ClusterError(f"{what} is not ready after {seconds:g} s\n" + "\n".join(ends))
        time.sleep(0.1)


def _tail(log: Path, lines: int = 10) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def members(host: Host) -> list[int]:
    """Ids of the processes in the host's network namespace: its daemons and the tasks of its jobs."""
    with _opened_members([host]) as found:
        return sorted(found)


def serves(node: Host) -> bool:
    """Whether the node's slurmd is running."""
    return any(_name(pid) == "slurmd" for pid in members(node))


def terminate(hosts: Iterable[Host], seconds: float) -> None:
    """Asks all processes of the hosts to end, once, and waits up to `seconds` for them."""
    _signal(hosts, signal.SIGTERM, seconds)


def kill(hosts: Sequence[Host]) -> None:
    """Kills all processes of the hosts, those that they start meanwhile too."""
    for _ in range(100):
        if _signal(hosts, signal.SIGKILL, 0.1) == 0:
            return
    raise ClusterError(f"processes {[pid for host in hosts for pid in members(host)]} cannot be killed")


def _signal(hosts: Iterable[Host], number: signal.Signals, seconds: float) -> int:
    """Signals all processes of the hosts and waits up to `seconds` for their end; how many there were."""
    with _opened_members(hosts) as found:
        ends = select.poll()
        for descriptor in found.values():
            # The descriptor of a process that has ended becomes readable.
            ends.register(descriptor, select.POLLIN)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
        deadline = time.monotonic() + seconds
        left = set(found.values())
        while left and (wait := deadline - time.monotonic()) > 0:
            for descriptor, _event in ends.poll(wait * 1000):
                ends.unregister(descriptor)
                left.discard(descriptor)
        return len(found)


@contextmanager
def _opened_members(hosts: Iterable[Host]) -> Iterator[dict[int, int]]:
    """{pid: descriptor} of the hosts' processes. A descriptor can't come to mean another process with the same id."""
    namespaces = set()
    for host in hosts:
        with suppress(FileNotFoundError):
            namespaces.add(_identity(NAMESPACES / host.namespace))
    with ExitStack() as opened:
        found = {}
        for pid in _pids():
            belongs = Path(f"/proc/{pid}/ns/net")
            # It ended meanwhile, or is of a kind that we may not look at, so none that we started.
            with suppress(ProcessLookupError, FileNotFoundError, PermissionError):
                if _identity(belongs) not in namespaces:
                    continue
                descriptor = os.pidfd_open(pid)
                opened.callback(os.close, descriptor)
                # Looked at again, as the id may have passed to another process just before it was opened.
                if _identity(belongs) in namespaces:
                    found[pid] = descriptor
        yield found


def foreign_daemons() -> list[str]:
    """Slurm's daemons that run on the machine outside our namespaces, as "name (pid)"."""
    ours = {pid for host in HOSTS for pid in members(host)}
    return [f"{name} ({pid})" for pid in _pids() if pid not in ours and (name := _name(pid)) in DAEMONS]


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _name(pid: int) -> str:
    """The name of a living process; empty for one that has ended, even if nobody has collected it yet."""
    with suppress(FileNotFoundError, ProcessLookupError):
        status = Path(f"/proc/{pid}/status").read_text()
        if "\nState:\tZ" not in status:
            return status.removeprefix("Name:\t").split("\n", 1)[0]
    return ""


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
