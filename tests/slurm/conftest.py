"""The cluster that the live tests use: one that is already up; tests never start or stop it."""

import os

import pytest

from slurm.cluster.layout import Layout
from slurm.cluster.lifecycle import is_up
from slurm.cluster.machine import linked_layout
from tests.slurm.polling import eventually

REQUIRED = bool(os.environ.get("ARMSCALE_REQUIRE_SLURM"))


@pytest.fixture(scope="session")
def cluster() -> Layout:
    layout = linked_layout()
    if layout is None:
        reason = "no cluster is up (python -m slurm.cluster up)"
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    # A test beside us may just have failed a node.
    eventually(lambda: is_up(layout), "all nodes healthy")
    return layout
