"""Launches that show, refuse, fail or were cut off, on the real cluster; no run of these trains."""

from functools import partial
from pathlib import Path

import pytest
import yaml

from scaling import rundir
from scaling.study.plan import plan_study
from scaling.study.table import load_study
from slurm.batches import JOB, Batch, next_batches, read_batches, write_batch
from slurm.cluster.layout import Layout
from slurm.launcher import recover, submit
from slurm.queue import read_jobs
from slurm.states import read_standings
from tests.scaling.test_quickstart import armscale
from tests.slurm import studies
from tests.slurm.polling import eventually, run


def jobs_of(folder: Path) -> list[str]:
    """Ids of all jobs that were submitted from `folder`, ended ones too."""
    listed = (line.split(" ", 1) for line in run("squeue", "--noheader", "--states=all", "--format=%F %Z").splitlines())
    return sorted({job for job, place in listed if place == str(folder)})


def stand(study: Path, expected: dict[str, str]) -> bool:
    """Whether the runs stand as expected."""
    root = study.parent / rundir.DEFAULT_ROOT
    standings = read_standings(plan_study(load_study(study), root), root)
    return {run: standing.state for run, standing in standings.items()} == expected


@pytest.mark.slurm
def test_a_dry_run_prints_every_script_and_submits_nothing(cluster: Layout, tmp_path: Path, shards: Path) -> None:
    study = studies.write_study(tmp_path, shards)
    told = studies.launch(study, "--dry-run", "--jobs", "1")
    assert told.count("#!/bin/bash") == told.count("#SBATCH --array=0-1%1") == 2
    assert told.count("#SBATCH --dependency=aftercorr:tiny-0001-") == 1
    assert not (tmp_path / "runs").exists()
    assert jobs_of(tmp_path) == []


@pytest.mark.slurm
def test_what_slurm_refuses_is_the_users_error_and_leaves_no_batch(
    cluster: Layout, tmp_path: Path, shards: Path
) -> None:
    study = studies.write_study(tmp_path, shards)
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"partition": "nowhere"}))
    ended = armscale("study", "launch", study.name, "--cluster", "slurm", "--site", "site.yaml", cwd=tmp_path)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "invalid partition" in ended.stderr and "Traceback" not in ended.stderr
    assert read_batches(tmp_path / "runs" / "tiny") == []
    assert jobs_of(tmp_path) == []


@pytest.mark.slurm
def test_failed_parents_block_their_children_and_a_second_launch_takes_all_up_again(
    cluster: Layout, tmp_path: Path, shards: Path
) -> None:
    study = studies.write_study(tmp_path, shards)
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"setup": ["exit 7"]}))
    for times in (1, 2):
        assert "4 of 4 runs submitted" in studies.launch(study)
        assert len(read_batches(tmp_path / "runs" / "tiny")) == 2 * times
        expected = {run.name: "failed" if "pretrain" in run.name else "blocked" for run in studies.run_folders(study)}
        eventually(partial(stand, study, expected), "all failed or blocked")


@pytest.mark.slurm
def test_a_launch_cut_off_around_sbatch_is_settled_by_the_next(
    cluster: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two batches without an id one had reached Slurm: it gets its id, the other is dropped; nothing runs twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    folders = next_batches(tmp_path)
    reached, missed = (Batch(next(folders), {0: name}) for name in ("a", "b"))
    for batch in (reached, missed):
        text = f'#!/bin/bash\n#SBATCH --job-name={batch.name} --array=0 --output=log\necho "rank $RANK"\n'
        write_batch(batch, text)
    job = submit(reached)
    assert reached.job is None
    recover(tmp_path)
    assert read_batches(tmp_path) == [reached]
    assert (reached.folder / JOB).read_text().strip() == job
    eventually(lambda: not read_jobs([job])[f"{job}_0"].alive, "it ends")
    assert (tmp_path / "log").read_text() == "rank \n", "the launching process's own rank is not the job's"
    assert jobs_of(tmp_path) == [job]


def test_no_slurm_exits_2_and_submits_nothing(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = studies.write_study(tmp_path, shards)
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = armscale("study", "launch", study.name, "--cluster", "slurm", cwd=tmp_path)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "is not installed" in ended.stderr and "Traceback" not in ended.stderr
    assert read_batches(tmp_path / "runs" / "tiny") == []
