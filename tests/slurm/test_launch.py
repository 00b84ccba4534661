"""A study from launch to completed on the real cluster, and everything on the way that must not happen twice."""

import concurrent.futures
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from scaling import rundir
from slurm.batches import read_batches
from slurm.cluster.layout import Layout
from tests.scaling.test_quickstart import armscale
from tests.slurm import studies
from tests.slurm.polling import run

SEEDS = 6


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The same study, one process a run, on this machine alone."""
    folder = tmp_path_factory.mktemp("local")
    study = studies.write_study(folder, shards, nodes=1, ranks_per_node=1, seeds=SEEDS)
    ended = armscale("study", "launch", study.name, "--jobs", "2", cwd=study.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return study


@contextmanager
def most_at_a_time() -> Iterator[dict[str, int]]:
    """{array: the most of its tasks that were seen running at once}, while the block lasts."""
    most: dict[str, int] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.3):
            running = Counter(run("squeue", "--noheader", "--states=RUNNING", "--format=%F").split())
            most.update({array: max(count, most.get(array, 0)) for array, count in running.items()})

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


@pytest.mark.slurm
@pytest.mark.slow
def test_a_study_of_twelve_runs_goes_from_launch_to_completed(
    cluster: Layout, tmp_path: Path, shards: Path, undisturbed: Path
) -> None:
    """Two launches at once; parents and children, two of an array at a time; the curves of one process; then nothing
    more to submit."""
    study = studies.write_study(tmp_path, shards, seeds=SEEDS)
    command = ("study", "launch", study.name, "--cluster", "slurm", "--site", "site.yaml", "--jobs", "2")
    with most_at_a_time() as most:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            both = list(pool.map(lambda _: armscale(*command, cwd=tmp_path), range(2)))
        assert {ended.returncode for ended in both} <= {0, 2}, [ended.stderr for ended in both]
        assert sum("12 of 12 runs submitted" in ended.stdout for ended in both) == 1, both
        batches = read_batches(tmp_path / "runs" / "tiny")
        assert sorted(run for batch in batches for run in batch.runs.values()) == sorted(
            folder.name for folder in studies.run_folders(study)
        )
        studies.wait_until_completed(study, 1500)
    assert {most.get(str(batch.job)) for batch in batches} == {2}, most

    expected, found = studies.curves(undisturbed), studies.curves(study)
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(curve), rtol=1e-5, atol=1e-5)
    for folder in studies.run_folders(study):
        environment = rundir.read_json(folder / rundir.ENVIRONMENT) or {}
        assert (environment["ranks"], len(environment["hosts"])) == (4, 2)
        assert [path.name for path in (folder / rundir.ATTEMPTS).iterdir()] == ["1"]
    assert "0 of 12 runs submitted" in studies.launch(study)
    assert read_batches(tmp_path / "runs" / "tiny") == batches
    told = armscale("study", "status", study.name, "--watch", cwd=tmp_path)
    assert "12 completed" in told.stdout, told.stdout
