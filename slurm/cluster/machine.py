"""What must hold on the machine before the cluster starts, and the Debian packages that it needs."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from scaling.errors import UserError
from slurm.cluster.layout import DEFAULT_STATE, MARK, SUBNET, Layout
from slurm.cluster.processes import ClusterError, foreign_daemons

SYSTEM_CONF: Final = Path("/etc/slurm/slurm.conf")
POLICY: Final = Path("/usr/sbin/policy-rc.d")

# program -> Debian package. The -core packages of MariaDB bring no service and no database of their own.
PACKAGES: Final = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "mariadbd": "mariadb-server-core",
    "mariadb": "mariadb-client-core",
    "ip": "iproute2",
}
PLUGINS: Final = ("slurm-wlm-basic-plugins", "slurm-wlm-mysql-plugin")


@contextmanager
def exclusive() -> Iterator[None]:
    """One `up` or `down` at a time on a machine."""
    # The abstract address is freed by the kernel when we end, however we end, and leaves no file behind.
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0{MARK}")
        except OSError:
            raise UserError("command", "up or down", "one at a time", "another one is running") from None
        yield


def require_root() -> None:
    """Namespaces, device nodes and daemons of many users need root and its capabilities."""
    if os.geteuid() != 0:
        raise UserError("user", f"uid {os.geteuid()}", "root: sudo python -m slurm.cluster ...")
    probe = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        why = probe.stderr.strip()
        raise UserError("user", "root", "root that may make namespaces (not in an unprivileged container)", why)


def require_no_other_slurm(layout: Layout) -> None:
    """Refuses a machine that already has a Slurm; its configuration is never touched."""
    if (SYSTEM_CONF.exists() or SYSTEM_CONF.is_symlink()) and not is_ours(layout):
        where = f"{SYSTEM_CONF} -> {SYSTEM_CONF.readlink()}" if SYSTEM_CONF.is_symlink() else str(SYSTEM_CONF)
        raise UserError("machine", where, "one without another Slurm, or --state with the folder of its cluster")
    named = os.environ.get("SLURM_CONF", "")
    if named and Path(named).resolve() not in (layout.slurm_conf, SYSTEM_CONF.resolve()):
        raise UserError("SLURM_CONF", named, "unset, as it names another Slurm")
    if others := foreign_daemons():
        raise UserError("machine", others, "one without another Slurm", "these processes are running")


def is_ours(layout: Layout) -> bool:
    """Whether the clients of this machine are pointed at the cluster of this state folder."""
    return SYSTEM_CONF.is_symlink() and SYSTEM_CONF.readlink() == layout.slurm_conf


def linked_layout() -> Layout | None:
    """The cluster that the clients of this machine are pointed at, if it is one of ours."""
    if not SYSTEM_CONF.is_symlink():
        return None
    layout = Layout(SYSTEM_CONF.readlink().parent)
    return layout if layout.mark.exists() else None


def require_free_state(layout: Layout) -> None:
    """Refuses a state folder with anything in it that is not ours, as `down` removes the folder."""
    state = layout.state
    if not re.fullmatch(r"(/[\w.-]+)+", str(state), re.ASCII) or (state.exists() and not state.is_dir()):
        valid = "an absolute path to a new or empty folder, of letters, digits and . _ - / alone"
        raise UserError("--state", str(state), valid, "Slurm's files have no quotes")
    if state.is_dir() and not layout.mark.exists() and any(state.iterdir()):
        raise UserError("--state", str(state), "a new or empty folder", "it holds files of others")
    if len(os.fsencode(layout.database_socket)) > 107:
        raise UserError("--state", str(state), "a shorter path", "sockets in it would exceed 107 bytes")


def require_open_path(layout: Layout) -> None:
    """Refuses a state folder below one that others cannot enter, as munge then refuses to serve."""
    for folder in layout.state.parents:
        if folder.exists() and not folder.stat().st_mode & stat.S_IXOTH:
            why = f"every user must be able to enter {folder} to reach munge and slurm.conf"
            raise UserError("--state", str(layout.state), f"a folder like {DEFAULT_STATE}", why)


def require_free_network() -> None:
    """Refuses a machine that already routes the cluster's subnet somewhere."""
    routes = subprocess.run(
        ["ip", "route", "show", f"{SUBNET}.0/24"], capture_output=True, text=True, check=True
    ).stdout
    if routes.strip():
        raise UserError("network", routes.strip(), f"no route to {SUBNET}.0/24", "the cluster needs this subnet")


def install_packages() -> None:
    """Installs what is missing, without starting any service of it."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if shutil.which("apt-get") is not None:
        missing += [package for package in PLUGINS if not _installed(package)]
    elif missing:
        raise UserError("machine", "no apt-get", "Debian 12 or newer", f"to install {' '.join(missing)}")
    if not missing:
        return
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    with _services_denied():
        if _apt(command).returncode != 0:
            # Absent or outdated lists are the usual reason.
            _apt(["apt-get", "update", "-q"])
            result = _apt(command)
            if result.returncode != 0:
                raise ClusterError(f"{' '.join(command)} failed:\n{(result.stdout + result.stderr)[-2000:]}")


def _installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"


def _apt(command: list[str]) -> subprocess.CompletedProcess[str]:
    # No timeout around it, as a killed dpkg leaves the machine's packages broken; apt's own ones instead.
    options = ["DPkg::Lock::Timeout=60", "Acquire::http::Timeout=20", "Dpkg::Options::=--force-confold"]
    command = [*command, *(f"-o{option}" for option in options)]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@contextmanager
def _services_denied() -> Iterator[None]:
    """Debian asks this file before it starts a freshly installed service; the administrator's own one is kept."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text(f"#!/bin/sh\n# {MARK}\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
