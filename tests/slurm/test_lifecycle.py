"""The cluster's whole life on the real machine: only where Slurm is required and no cluster is up."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import network
from slurm.cluster.layout import NODES, Layout
from slurm.cluster.lifecycle import down, fail_node, is_up, up
from slurm.cluster.machine import SYSTEM_CONF, linked_layout
from slurm.cluster.processes import NAMESPACES, foreign_daemons, members
from tests.slurm.conftest import REQUIRED
from tests.slurm.polling import eventually, run


def traces(layout: Layout) -> dict[str, object]:
    """Whatever the cluster could leave behind."""
    return {
        "links": run("ip", "-brief", "link"),
        "namespaces": run("ip", "netns", "list"),
        "mounts": Path("/proc/mounts").read_text(),
        "hosts": Path("/etc/hosts").read_text(),
        "slurm.conf": SYSTEM_CONF.is_symlink() or SYSTEM_CONF.exists(),
        "run": sorted(entry.name for entry in Path("/run").iterdir()),
        "state": layout.state.exists(),
        "daemons": foreign_daemons(),
    }


def require_quiet_machine() -> None:
    if not REQUIRED:
        pytest.skip("would change the machine's network: set ARMSCALE_REQUIRE_SLURM=1 to let it")
    if linked_layout() is not None:
        pytest.skip("a cluster is up: this test runs before it")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Unlike tmp_path, one that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slurm
def test_up_repair_and_down_leave_nothing_behind(tmp_path: Path, open_folder: Path) -> None:
    require_quiet_machine()
    layout = Layout(open_folder / "state")
    before = traces(layout)
    assert down(layout) is False
    try:
        # What an `up` leaves that was killed half-way.
        layout.state.mkdir()
        layout.mark.touch()
        network.create(layout.namespaces_record)

        assert up(layout) is True
        daemons = [members(node) for node in NODES]
        assert up(layout) is False
        assert [members(node) for node in NODES] == daemons

        fail_node(NODES[2])
        assert members(NODES[2]) == []
        assert up(layout) is True
        assert is_up(layout)
        assert members(NODES[0]) == daemons[0]

        # A job that refuses to end when asked.
        log = tmp_path / "log"
        run("sbatch", f"--output={log}", "--nodes=2", "--wrap=trap '' TERM; echo on; srun sleep 600; sleep 600")
        eventually(lambda: log.exists() and log.read_text() == "on\n", "the job runs")
    finally:
        assert down(layout) is True
    assert traces(layout) == before
    assert down(layout) is False
    assert not os.path.lexists(layout.state)


@pytest.mark.slurm
def test_a_folder_of_namespaces_from_before_stays_and_ours_goes(tmp_path: Path) -> None:
    require_quiet_machine()
    was_there = NAMESPACES.is_dir()
    if not was_there:
        network.create(tmp_path / "ours")
        network.remove(tmp_path / "ours")
        assert not NAMESPACES.exists()
        run("ip", "netns", "add", "somebody-else")
        run("ip", "netns", "delete", "somebody-else")
    network.create(tmp_path / "record")
    assert not (tmp_path / "record").exists()
    network.remove(tmp_path / "record")
    assert NAMESPACES.is_dir()
    if not was_there:
        run("umount", "--no-mtab", str(NAMESPACES))
        NAMESPACES.rmdir()
