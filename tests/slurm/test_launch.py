"""A study from launch to completed on the real cluster, and everything on the way that must not happen twice."""

import concurrent.futures
from pathlib import Path

import pytest
import torch

from scaling import rundir
from slurm.batches import read_batches
from slurm.cluster.layout import Layout
from tests.scaling.test_quickstart import armscale
from tests.slurm import studies


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The same study, one process a run, on this machine alone."""
    study = studies.write_study(tmp_path_factory.mktemp("local"), shards, nodes=1, ranks_per_node=1)
    ended = armscale("study", "launch", study.name, "--jobs", "2", cwd=study.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return study


@pytest.mark.slurm
def test_a_study_goes_from_launch_to_completed(
    cluster: Layout, tmp_path: Path, shards: Path, undisturbed: Path
) -> None:
    """Two launches at once; parents and children; the curves of one process; then nothing more to submit."""
    study = studies.write_study(tmp_path, shards)
    command = ("study", "launch", study.name, "--cluster", "slurm", "--site", "site.yaml")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: armscale(*command, cwd=tmp_path), range(2)))
    assert {ended.returncode for ended in both} <= {0, 2}, [ended.stderr for ended in both]
    assert sum("4 of 4 runs submitted" in ended.stdout for ended in both) == 1, both
    batches = read_batches(tmp_path / "runs" / "tiny")
    assert sorted(run for batch in batches for run in batch.runs.values()) == sorted(
        folder.name for folder in studies.run_folders(study)
    )
    studies.wait_until_completed(study)

    expected, found = studies.curves(undisturbed), studies.curves(study)
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(curve), rtol=1e-5, atol=1e-5)
    for folder in studies.run_folders(study):
        environment = rundir.read_json(folder / rundir.ENVIRONMENT) or {}
        assert (environment["ranks"], len(environment["hosts"])) == (4, 2)
        assert [path.name for path in (folder / rundir.ATTEMPTS).iterdir()] == ["1"]
    assert "0 of 4 runs submitted" in studies.launch(study)
    assert read_batches(tmp_path / "runs" / "tiny") == batches
    told = armscale("study", "status", study.name, cwd=tmp_path)
    assert told.stdout.count("completed") == 4, told.stdout
