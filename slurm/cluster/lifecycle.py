"""Bringing the cluster up, looking at it, taking it down, and failing one of its nodes on purpose."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
from typing import Final

from slurm.cluster import machine, network
from slurm.cluster.layout import CONTROLLER, HOSTS, NODES, Host, Layout, gres_conf, slurm_conf, slurmdbd_conf
from slurm.cluster.processes import ClusterError, client, kill, serves, start, terminate, wait_until

HEALTHY: Final = ("idle", "mixed", "allocated", "completing")
GRACE_SECONDS: Final = 5.0
"""What jobs get to end after SIGTERM when the cluster goes down."""


def up(layout: Layout) -> bool:
    """Brings up the cluster, or the nodes of it that failed; False if all was up. Replaces what a cut-off `up` left.

    Raises UserError (not root, no Debian, another Slurm, a state folder or subnet in use) and ClusterError (a daemon
    did not start).
    """
    machine.require_root()
    machine.require_no_other_slurm(layout)
    machine.require_free_state(layout)
    machine.require_open_path(layout)
    with machine.exclusive():
        fresh = not node_states(layout)
        if fresh:
            _remove(layout)
            machine.require_free_network()
            machine.install_packages()
            _write_state(layout)
            network.create(layout.namespaces_record)
            _start_controller(layout)
        failed = [node for node in NODES if not serves(node)]
        for node in failed:
            start_node(layout, node)
        wait_until(layout, "slurmd", lambda: is_up(layout))
    return fresh or bool(failed)


def down(layout: Layout) -> bool:
    """Ends the cluster and its jobs and removes everything but the packages; False if there was nothing."""
    machine.require_root()
    machine.require_no_other_slurm(layout)
    machine.require_free_state(layout)
    with machine.exclusive():
        existed = layout.mark.exists()
        _remove(layout)
    return existed


def is_up(layout: Layout) -> bool:
    """Whether every node answers and can take jobs."""
    states = node_states(layout)
    return len(states) == len(NODES) and all(state in HEALTHY for state in states.values())


def node_states(layout: Layout) -> dict[str, str]:
    """{node: state} in sinfo's words (a trailing * means no answer); empty where the controller does not answer."""
    if not machine.is_ours(layout):
        return {}
    listing = client(layout, "sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T")
    return dict(line.split() for line in listing.stdout.splitlines()) if listing.returncode == 0 else {}


def start_node(layout: Layout, node: Host) -> None:
    """Starts the node's slurmd."""
    layout.spool(node).mkdir(parents=True, exist_ok=True)
    start(layout, node, f"slurmd-{node.name}", ["slurmd", "-D", "-f", str(layout.slurm_conf)], {})


def fail_node(node: Host) -> None:
    """Kills everything on the node at once, as a power cut does; `start_node` brings it back."""
    kill([node])


def _write_state(layout: Layout) -> None:
    layout.state.mkdir(parents=True, exist_ok=True)
    # Users reach slurm.conf and munge's socket through it.
    layout.state.chmod(0o755)
    layout.mark.touch()
    for folder in (layout.logs, layout.pids, layout.jobs, layout.devices, layout.munge_socket.parent):
        folder.mkdir()
    for device in layout.gpus:
        # The number of /dev/null: something harmless that is a device.
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    layout.munge_key.touch(mode=0o400)
    layout.munge_key.write_bytes(secrets.token_bytes(128))
    layout.slurmdbd_conf.touch(mode=0o600)
    layout.slurmdbd_conf.write_text(slurmdbd_conf(layout))
    layout.gres_conf.write_text(gres_conf(layout))
    layout.slurm_conf.write_text(slurm_conf(layout))
    machine.SYSTEM_CONF.parent.mkdir(exist_ok=True)
    machine.SYSTEM_CONF.symlink_to(layout.slurm_conf)


def _start_controller(layout: Layout) -> None:
    """Authentication, database, accounting and scheduler, each ready before the next."""
    munge = ["munged", "--foreground", f"--key-file={layout.munge_key}", f"--socket={layout.munge_socket}"]
    munge += [f"--pid-file={layout.pids}/munged", f"--seed-file={layout.state}/munge.seed"]
    start(layout, CONTROLLER, "munged", [*munge, f"--log-file={layout.logs}/munged.log"], {})
    wait_until(layout, "munged", layout.munge_socket.exists)

    _start_database(layout)
    environment = {"SLURM_CONF": str(layout.slurm_conf), "MYSQL_UNIX_PORT": str(layout.database_socket)}
    start(layout, CONTROLLER, "slurmdbd", ["slurmdbd", "-D"], environment)
    wait_until(layout, "slurmdbd", lambda: client(layout, "sacctmgr", "show", "cluster").returncode == 0)

    start(layout, CONTROLLER, "slurmctld", ["slurmctld", "-D", "-c", "-f", str(layout.slurm_conf)], {})
    wait_until(layout, "slurmctld", lambda: client(layout, "scontrol", "ping").returncode == 0)


def _start_database(layout: Layout) -> None:
    folder, socket = f"--datadir={layout.database}", f"--socket={layout.database_socket}"
    create = ["mariadb-install-db", "--no-defaults", folder, "--user=root", "--skip-test-db"]
    created = subprocess.run(
        [*create, "--auth-root-authentication-method=socket"], capture_output=True, text=True, check=False, timeout=60
    )
    if created.returncode != 0:
        raise ClusterError(f"mariadb-install-db failed:\n{created.stdout[-2000:]}{created.stderr[-2000:]}")
    # Only the socket, and no waiting for the disk: the database goes when the cluster does.
    serve = ["mariadbd", "--no-defaults", "--user=root", folder, socket, f"--pid-file={layout.pids}/mariadbd"]
    options = ["--skip-networking", "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"]
    start(layout, CONTROLLER, "mariadbd", [*serve, *options], {})
    ask = ("mariadb", "--no-defaults", socket, "--execute=SELECT 1")
    wait_until(layout, "mariadbd", lambda: client(layout, *ask).returncode == 0)


def _remove(layout: Layout) -> None:
    """Ends the processes, then removes network, link and state folder, whichever of them exist."""
    # Jobs may have something to save; of the controller nothing is kept.
    terminate(NODES, GRACE_SECONDS)
    kill(HOSTS)
    network.remove(layout.namespaces_record)
    if machine.is_ours(layout):
        machine.SYSTEM_CONF.unlink()
    if layout.mark.exists():
        shutil.rmtree(layout.state)
