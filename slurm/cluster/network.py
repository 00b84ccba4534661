"""The cluster's network: a namespace a host, all joined by one bridge, and their names in /etc/hosts."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from slurm.cluster.layout import BRIDGE, HOSTS, MACHINE_ADDRESS, Host, add_hosts, remove_hosts
from slurm.cluster.processes import NAMESPACES, ClusterError

HOSTS_FILE: Final = Path("/etc/hosts")


def create(record: Path) -> None:
    """Makes the bridge, the hosts' namespaces and their names; none of them may exist.

    `record` is created where `ip` also makes the folder of all namespaces, so that `remove` knows whose it is.
    """
    if not NAMESPACES.is_dir():
        record.touch()
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "add", f"{MACHINE_ADDRESS}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    for host in HOSTS:
        _join(host)
    _rewrite(add_hosts(HOSTS_FILE.read_text()))


def _join(host: Host) -> None:
    inside = ("-n", host.namespace)
    _ip("netns", "add", host.namespace)
    _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _ip("link", "set", host.link, "master", BRIDGE, "up")
    _ip(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip(*inside, "link", "set", "eth0", "up")
    _ip(*inside, "link", "set", "lo", "up")


def remove(record: Path) -> None:
    """Removes what `create` made, also after it was cut off half-way. The hosts' processes must have ended."""
    for host in HOSTS:
        # The cable first: the kernel removes it some time after its namespace, which a next `create` would run into.
        if _link_exists(host.link):
            _ip("link", "delete", host.link)
        if (NAMESPACES / host.namespace).exists():
            _ip("netns", "delete", host.namespace)
    if _link_exists(BRIDGE):
        _ip("link", "delete", BRIDGE)
    if record.exists() and NAMESPACES.is_dir() and not any(NAMESPACES.iterdir()):
        # `ip netns add` made and mounted it for us, and nobody else uses it meanwhile.
        subprocess.run(["umount", "--no-mtab", str(NAMESPACES)], check=False, capture_output=True, timeout=10)
        NAMESPACES.rmdir()
    text = HOSTS_FILE.read_text()
    if (cleaned := remove_hosts(text)) != text:
        _rewrite(cleaned)


def _link_exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def _rewrite(text: str) -> None:
    # In place, not by renaming: in containers /etc/hosts is a mount point.
    HOSTS_FILE.write_text(text)


def _ip(*arguments: str) -> None:
    result = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True, timeout=10)
    if result.returncode != 0:
        raise ClusterError(f"ip {' '.join(arguments)} failed: {result.stderr.strip()}")
