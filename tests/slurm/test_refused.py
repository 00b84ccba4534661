"""Launches that show, refuse, fail or were cut off, on the real cluster; no run of these trains."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from scaling import rundir
from scaling.attempt import Attempt, write_status
from scaling.study.folders import write_folders
from scaling.study.plan import plan_study
from scaling.study.table import load_study
from slurm.batches import JOB, Batch, next_batches, read_batches, write_batch
from slurm.cluster.layout import Layout
from slurm.launcher import recover, submit
from slurm.queue import read_jobs
from slurm.states import read_standings
from tests.scaling import runs
from tests.scaling.test_quickstart import armscale
from tests.slurm import studies
from tests.slurm.polling import eventually, run
from tests.slurm.test_queue import altered


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
def test_what_was_submitted_before_a_refusal_is_told_and_stays(
    cluster: Layout, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies.write_study(tmp_path, shards)
    refuse = 'if [ $calls = 2 ]; then set -- --partition=nowhere "$@"; fi'
    monkeypatch.setenv("PATH", write_sbatch(tmp_path / "refusing", refuse))
    ended = armscale("study", "launch", study.name, "--cluster", "slurm", "--site", "site.yaml", cwd=tmp_path)
    try:
        assert ended.returncode == 2, ended.stdout + ended.stderr
        assert "1 of 2 arrays were submitted before it" in ended.stderr
        assert "2 of 4 runs submitted" in studies.launch(study)
        assert len(jobs_of(tmp_path)) == 2
    finally:
        for job in jobs_of(tmp_path):
            run("scancel", job)


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
def test_children_that_slurm_cancelled_for_a_parent_that_only_stopped_are_submitted_again(
    cluster: Layout, tmp_path: Path, shards: Path
) -> None:
    """As where a job is preempted for good, or cannot requeue itself: nobody has cancelled anything."""
    study = studies.write_study(tmp_path, shards)
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"setup": ["exit 7"]}))
    studies.launch(study)
    jobs = jobs_of(tmp_path)
    eventually(lambda: not any(job.alive for job in read_jobs(jobs).values()), "all ended")
    for folder in studies.run_folders(study):
        if "pretrain" in folder.name:
            write_status(folder, "stopped", attempt=1)
    expected = {run.name: "stopped" if "pretrain" in run.name else "planned" for run in studies.run_folders(study)}
    eventually(partial(stand, study, expected), "the children are planned")
    assert "4 of 4 runs submitted" in studies.launch(study)


@pytest.mark.slurm
def test_a_job_of_another_with_an_id_of_ours_is_none_of_ours(cluster: Layout, tmp_path: Path, shards: Path) -> None:
    """A cluster that was set up anew gives its ids again: to status it is no job of the study, nor to cancel."""
    study = studies.write_study(tmp_path, shards, nodes=1, ranks_per_node=1)
    job = run("sbatch", "--parsable", "--hold", "--array=0-1", "--output=/dev/null", "--wrap=true").strip()
    try:
        submitted(study, job)
        assert stand(study, dict.fromkeys((folder.name for folder in studies.run_folders(study)), "planned"))
        assert "4 of 4 runs cancelled" in armscale("study", "cancel", study.name, cwd=tmp_path).stdout
        assert all(task.alive for task in read_jobs([job]).values())
    finally:
        run("scancel", job)


@pytest.mark.slurm
def test_a_run_that_failed_and_is_now_in_a_job_of_the_users_own_is_left_alone(
    cluster: Layout, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies.write_study(tmp_path, shards, seeds=1)
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"setup": ["exit 7"]}))
    studies.launch(study)
    child, parent = (folder.name for folder in studies.run_folders(study))
    eventually(partial(stand, study, {parent: "failed", child: "blocked"}), "it fails")
    job = run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600").strip()
    try:
        eventually(lambda: read_jobs([job])[job].state == "RUNNING", "the user's job runs")
        with monkeypatch.context() as inside:
            inside.setenv("SLURM_JOB_ID", job)
            write_status(tmp_path / "runs" / "tiny" / parent, "running", attempt=1)
        assert stand(study, {parent: "running", child: "planned"})
        assert "0 of 2 runs submitted" in studies.launch(study)
    finally:
        run("scancel", job)


@pytest.mark.slurm
def test_cancel_ends_jobs_of_runs_that_the_studys_file_no_longer_has(
    cluster: Layout, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies.write_study(tmp_path, shards)
    monkeypatch.setenv("PATH", write_sbatch(tmp_path / "holding"))
    studies.launch(study)
    study.write_text(study.read_text().replace("lr: 0.001", "lr: 0.002"))
    assert "4 of 4 runs submitted" in studies.launch(study)
    assert "4 of 4 runs cancelled" in armscale("study", "cancel", study.name, cwd=tmp_path).stdout
    assert len(jobs_of(tmp_path)) == 4
    assert not any(job.alive for job in read_jobs(jobs_of(tmp_path)).values())


@pytest.mark.slurm
def test_a_retried_run_that_ends_before_it_says_a_word_has_failed(
    cluster: Layout, tmp_path: Path, shards: Path
) -> None:
    """It was cancelled before, and a launch would leave it alone as such."""
    study = studies.write_study(tmp_path, shards, seeds=1)
    plan = plan_study(load_study(study), tmp_path / "runs")
    write_folders(plan, tmp_path / "runs")
    assert "2 of 2 runs cancelled" in armscale("study", "cancel", study.name, cwd=tmp_path).stdout
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"setup": ["exit 7"]}))
    retried = armscale("study", "retry", study.name, "--cluster", "slurm", "--site", "site.yaml", cwd=tmp_path)
    assert "2 of 2 runs submitted" in retried.stdout, retried.stderr
    parent, child = (row.config.run for row in plan.rows)
    eventually(partial(stand, study, {parent: "failed", child: "blocked"}), "it fails")


@pytest.mark.slurm
def test_a_controller_that_is_away_is_told_in_one_message(
    cluster: Layout, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies.write_study(tmp_path, shards)
    # Port 9 (discard): nobody listens there.
    conf = altered(cluster, tmp_path, r"^ClusterName", "SlurmctldPort=9\nMessageTimeout=2\nClusterName")
    monkeypatch.setenv("SLURM_CONF", conf)
    for options in (["--dry-run"], ["--emit", "files"], []):
        ended = armscale("study", "launch", study.name, "--cluster", "slurm", *options, cwd=tmp_path)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
        assert "Slurm does not answer, the same command continues later" in ended.stderr


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


def submitted(study: Path, job: str) -> None:
    """Notes all runs that wait for no other as submitted in the array `job`."""
    root = study.parent / rundir.DEFAULT_ROOT
    plan = plan_study(load_study(study), root)
    runs = [row.config.run for row in plan.rows if row.level == 0]
    batch = Batch(next(next_batches(write_folders(plan, root))), dict(enumerate(runs)))
    write_batch(batch, "#!/bin/bash\n")
    (batch.folder / JOB).write_text(f"{job}\n")


def test_where_slurm_cannot_be_asked_its_runs_are_not_started_here(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be in its queue, and would be trained twice."""
    study = studies.write_study(tmp_path, shards, nodes=1, ranks_per_node=1)
    submitted(study, "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in ("launch", "retry"):
        ended = armscale("study", command, study.name, "--cluster", "local", cwd=tmp_path)
        assert ended.returncode == 2, ended.stdout + ended.stderr
        assert "squeue is not installed" in ended.stderr and "Traceback" not in ended.stderr
    assert not any((folder / rundir.ATTEMPTS).exists() for folder in studies.run_folders(study))


def test_a_run_started_by_hand_here_is_left_alone(tmp_path: Path, shards: Path) -> None:
    study = studies.write_study(tmp_path, shards, nodes=1, ranks_per_node=1, seeds=1)
    root = tmp_path / rundir.DEFAULT_ROOT
    plan = plan_study(load_study(study), root)
    first, child = (write_folders(plan, root) / row.config.run for row in plan.rows)
    Attempt.claim(first).set_status("running")  # by this very process
    states = {run: standing.state for run, standing in read_standings(plan, root).items()}
    assert states == {first.name: "running", child.name: "planned"}


@pytest.mark.slurm
def test_no_sacct_exits_2_where_nothing_else_knows(
    cluster: Layout, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch whose launch was cut off, and that the queue does not list, only accounting knows if it was there."""
    study = studies.write_study(tmp_path, shards)
    batch = Batch(next(next_batches(tmp_path / "runs" / "tiny")), {0: "a"})
    write_batch(batch, "#!/bin/bash\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scontrol"):
        (programs / name).symlink_to(str(shutil.which(name)))
    with monkeypatch.context() as without:
        without.setenv("PATH", str(programs))
        ended = armscale("study", "launch", study.name, "--cluster", "slurm", "--site", "site.yaml", cwd=tmp_path)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "sacct is not installed" in ended.stderr and "Traceback" not in ended.stderr
    assert read_batches(tmp_path / "runs" / "tiny") == [batch]
    assert jobs_of(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_root_that_cannot_be_written_exits_2(tmp_path: Path, shards: Path) -> None:
    study = studies.write_study(tmp_path, shards)
    (tmp_path / "runs").mkdir()
    for cluster in ("slurm", "local"):
        launch = (
            f"mount -t tmpfs -o ro none runs && '{sys.executable}' -m scaling.cli study launch $0 --cluster {cluster}"
        )
        command = ["unshare", "--mount", "sh", "-c", launch, study.name]
        ended = subprocess.run(
            command, cwd=tmp_path, env=runs.environment(), capture_output=True, text=True, check=False
        )
        assert ended.returncode == 2, ended.stdout + ended.stderr
        assert "Read-only file system" in ended.stderr and "Traceback" not in ended.stderr


def write_sbatch(folder: Path, *lines: str) -> str:
    """A folder with an sbatch of its own that holds every job and counts its calls; a PATH that begins with it."""
    folder.mkdir()
    place = folder / "sbatch"
    place.write_text(f"""#!/bin/bash
echo call >> {folder}/calls
calls=$(wc -l < {folder}/calls)
{chr(10).join(lines)}
exec {shutil.which("sbatch")} --hold "$@"
""")
    place.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.slurm
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_launch_killed_half_way_and_repeated_submits_every_run_once(
    cluster: Layout, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed around its second call of sbatch, before Slurm got the array or before its id was noted."""
    study = studies.write_study(tmp_path, shards)
    reach = f'{shutil.which("sbatch")} --hold "$@" > /dev/null;' if moment == "after" else ""
    path = write_sbatch(tmp_path / "killing", f"if [ $calls = 2 ]; then {reach} kill -9 $PPID; exit; fi")
    monkeypatch.setenv("PATH", path)
    ended = armscale("study", "launch", study.name, "--cluster", "slurm", "--site", "site.yaml", cwd=tmp_path)
    assert ended.returncode == -9, ended.stdout + ended.stderr
    try:
        left = 0 if moment == "after" else 2
        assert f"{left} of 4 runs submitted" in studies.launch(study)
        folder = tmp_path / "runs" / "tiny"
        submitted = [run for batch in read_batches(folder) for run in batch.runs.values()]
        assert sorted(submitted) == sorted(run.name for run in studies.run_folders(study))
        tasks = [run("squeue", "--noheader", "--array", f"--jobs={job}", "--format=%i") for job in jobs_of(tmp_path)]
        assert len("".join(tasks).split()) == 4, tasks
        assert {batch.job for batch in read_batches(folder)} == set(jobs_of(tmp_path))
    finally:
        for job in jobs_of(tmp_path):
            run("scancel", job)


@pytest.mark.slurm
@pytest.mark.slow
def test_two_thousand_runs_take_two_calls_of_sbatch(
    cluster: Layout, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MaxArraySize is 1001, so the largest task number is 1000: two arrays."""
    study = studies.write_long_run(tmp_path, shards, nodes=1)
    given = yaml.safe_load(study.read_text())
    given["axes"]["seed"] = list(range(2000))
    study.write_text(yaml.safe_dump(given))
    monkeypatch.setenv("PATH", write_sbatch(tmp_path / "counting"))
    try:
        assert "2000 of 2000 runs submitted" in studies.launch(study)
        assert (tmp_path / "counting" / "calls").read_text().split() == ["call"] * 2
        assert sorted(len(batch.runs) for batch in read_batches(tmp_path / "runs" / "tiny")) == [999, 1001]
        assert "0 of 2000 runs submitted" in studies.launch(study)
    finally:
        for job in jobs_of(tmp_path):
            run("scancel", job)


@pytest.mark.slurm
def test_emitted_files_are_whole_jobs_that_a_user_submits(cluster: Layout, tmp_path: Path, shards: Path) -> None:
    """What they say can be edited; once submitted they are known to status, launch and cancel."""
    study = studies.write_study(tmp_path, shards)
    told = studies.launch(study, "--emit", "files", "--jobs", "1")
    scripts = sorted((tmp_path / "files").glob("*.sbatch"))
    assert [script.name for script in scripts] == ["01-pretrain-2x2.sbatch", "02-finetune-2x2.sbatch"]
    assert all(str(script.relative_to(tmp_path)) in told for script in scripts)
    assert jobs_of(tmp_path) == []
    assert "submitit" not in "".join(script.read_text() for script in scripts)
    for script in scripts:
        script.write_text(script.read_text().replace("#SBATCH --requeue", "#SBATCH --requeue --comment=mine --hold"))
    run(str(tmp_path / "files" / "submit.sh"))
    try:
        assert run(str(tmp_path / "files" / "submit.sh")) == "", "called again it submits what is missing"
        found = [run("scontrol", "show", "job", job) for job in jobs_of(tmp_path)]
        assert len(found) == 2 and all("Comment=mine" in job for job in found)
        assert sum("Dependency=aftercorr:" in job for job in found) == 1
        assert "0 of 4 runs submitted" in studies.launch(study)
        assert "4 queued" in armscale("study", "status", study.name, cwd=tmp_path).stdout
        assert "4 of 4 runs cancelled" in armscale("study", "cancel", study.name, cwd=tmp_path).stdout
        eventually(lambda: not any(job.alive for job in read_jobs(jobs_of(tmp_path)).values()), "all cancelled")
    finally:
        for job in jobs_of(tmp_path):
            run("scancel", job)


@pytest.mark.slurm
def test_the_preflight_tries_the_cluster_and_names_what_is_missing(cluster: Layout, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"partition": "low", "gpus": True, "time": "1-00:00:00"}))
    told = armscale("doctor", "--cluster", "--site", "site.yaml", cwd=tmp_path)
    assert told.returncode == 1, told.stdout + told.stderr
    lines = told.stdout.splitlines()
    for line in ("shared folder: visible from 2 of 2 nodes", "scontrol: on every node", "sacct: answers"):
        assert f"good {line}" in lines, told.stdout
    assert "good signals: SIGUSR2 reaches every task" in lines, told.stdout
    # Its GPUs are declared, not real.
    assert [line for line in lines if line.startswith("bad ")] == [
        f"bad node {node}: torch sees 0 of 1 granted GPUs" for node in sorted(re.findall(r"n\d", lines[4]))
    ]
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"partition": "nowhere"}))
    told = armscale("doctor", "--cluster", "--site", "site.yaml", cwd=tmp_path)
    assert told.returncode == 2 and "Traceback" not in told.stderr, told.stdout + told.stderr
