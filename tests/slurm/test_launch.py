"""A study from launch to completed on the real cluster, and everything on the way that must not happen twice."""

import concurrent.futures
import sys
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
from slurm.history import read_starts
from slurm.queue import read_jobs
from tests.scaling.test_quickstart import HOME, armscale
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


@pytest.mark.slurm
@pytest.mark.slow
def test_the_users_own_variables_neither_reach_nor_redirect_a_job(
    cluster: Layout, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a site wants SBATCH_EXPORT=NONE, ranks still get what their job sets, such as where they meet."""
    study = studies.write_long_run(tmp_path / "launched", shards, nodes=2, steps=2)
    emitted = studies.write_long_run(tmp_path / "emitted", shards, nodes=2, steps=2)
    for name, value in {"EXPORT": "NONE", "PARTITION": "nowhere", "JOB_NAME": "mine", "OUTPUT": "/dev/null"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    studies.launch(study)
    studies.launch(emitted, "--emit", "files")
    run(str(emitted.parent / "files" / "submit.sh"))
    for one in (study, emitted):
        assert read_jobs([studies.last_job(one)])[studies.last_job(one)].name.startswith("tiny-0001-")
        studies.wait_until_completed(one, 180)


@pytest.mark.slurm
@pytest.mark.slow
def test_what_is_submitted_inside_a_job_takes_nothing_of_it(cluster: Layout, tmp_path: Path, shards: Path) -> None:
    """Neither its size nor that it was started again; by a launch and by emitted files."""
    study, emitted = (
        studies.write_long_run(tmp_path / name, shards, nodes=1, steps=2) for name in ("launched", "emitted")
    )
    outer = tmp_path / "outer.sh"
    command = f"{sys.executable} -m scaling.cli study launch tiny.yaml --cluster slurm --site site.yaml"
    outer.write_text(f"""#!/bin/bash
#SBATCH --partition=high --nodes=3 --ntasks-per-node=2 --cpus-per-task=2 --gpus-per-node=4 --output={tmp_path}/outer.log
export PYTHONSAFEPATH=1 PYTHONPATH={HOME} SLURM_RESTART_COUNT=3 RANK=1 WORLD_SIZE=6
cd {study.parent} && {command} && cd {emitted.parent} && {command} --emit files && files/submit.sh
""")
    run("sbatch", "--wait", str(outer), seconds=120)
    for one in (study, emitted):
        studies.wait_until_completed(one, 120)
        (folder,) = studies.run_folders(one)
        (start,) = read_starts(folder)
        assert (len(start.nodes), start.restart) == (1, 0)
        assert (rundir.read_json(folder / rundir.ENVIRONMENT) or {})["ranks"] == 1
