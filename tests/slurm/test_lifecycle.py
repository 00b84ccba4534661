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
from slurm.cluster.processes import foreign_daemons, members
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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Unlike tmp_path, one that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slurm
def test_up_repair_and_down_leave_nothing_behind(tmp_path: Path, open_folder: Path) -> None:
    if not REQUIRED:
        pytest.skip("would change the machine's network: set ARMSCALE_REQUIRE_SLURM=1 to let it")
    if linked_layout() is not None:
        pytest.skip("a cluster is up: this test runs before it")
    layout = Layout(open_folder / "state")
    before = traces(layout)
    assert down(layout) is False
    try:
        # What an `up` leaves that was killed half-way.
        layout.state.mkdir()
        layout.mark.touch()
        network.create()

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
