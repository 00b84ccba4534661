"""Requeued, preempted, cancelled, its node lost: a run on the real cluster ends as if nothing had happened."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling import rundir
from scaling.checkpoint import committed, step_of
from slurm.cluster.layout import NODES, Host, Layout
from slurm.cluster.lifecycle import fail_node, is_up, start_node
from slurm.cluster.processes import members
from slurm.history import CUT_OFF, read_starts
from slurm.queue import read_jobs
from tests.scaling.test_quickstart import armscale
from tests.slurm import studies
from tests.slurm.polling import eventually, run


def status(folder: Path) -> dict[str, Any]:
    return rundir.read_json(folder / rundir.STATUS) or {}


def trains(folder: Path, attempt: int) -> bool:
    """Whether this attempt has written steps."""
    return any(row["attempt"] == attempt for row in rundir.read_lines(folder / rundir.METRICS)[0])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The long run, undisturbed on this machine."""
    study = studies.write_long_run(tmp_path_factory.mktemp("alone"), shards, nodes=1)
    ended = armscale("study", "launch", study.name, cwd=study.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return study


def assert_undisturbed(study: Path, alone: Path) -> None:
    """Its curve is that of a run that nothing happened to."""
    (found,), (expected,) = studies.curves(study).values(), studies.curves(alone).values()
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.slurm
def test_requeued_from_outside_and_preempted(cluster: Layout, tmp_path: Path, shards: Path, alone: Path) -> None:
    """Both times what was done is saved: no step stands twice, and the curve is that of an undisturbed process."""
    study = studies.write_long_run(tmp_path / "cluster", shards, nodes=2)
    studies.launch(study)
    (folder,) = studies.run_folders(study)
    job = studies.last_job(study)
    eventually(lambda: trains(folder, 1), "it trains", 120)
    run("scontrol", "requeue", job)
    eventually(lambda: trains(folder, 2), "it trains again", 120)
    run("srun", "--partition=high", "--nodes=4", "--exclusive", "true", seconds=120)
    studies.wait_until_completed(study)

    eventually(lambda: not any(job.alive for job in read_jobs([job]).values()), "the job ends")
    rows = rundir.read_lines(folder / rundir.METRICS)[0]
    assert sorted({row["attempt"] for row in rows}) == [1, 2, 3], studies.story(study)
    assert [row["step"] for row in rows] == list(range(1, studies.LONG_STEPS + 1))
    assert_undisturbed(study, alone)
    assert read_jobs([job])[job].restarts == 2
    assert "0 of 1 runs submitted" in studies.launch(study)


@pytest.fixture
def silent_preemption(cluster: Layout) -> Iterator[None]:
    """The cluster preempts as Slurm does by default: without the signal that a job asked for."""
    text = cluster.slurm_conf.read_text()
    setting = "SlurmctldParameters=preempt_send_user_signal\n"
    assert setting in text
    try:
        cluster.slurm_conf.write_text(text.replace(setting, ""))
        run("scontrol", "reconfigure")
        yield
    finally:
        cluster.slurm_conf.write_text(text)
        run("scontrol", "reconfigure")


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to configure the cluster")
def test_preempted_without_a_signal_of_its_own(
    cluster: Layout, tmp_path: Path, shards: Path, alone: Path, silent_preemption: None
) -> None:
    """SIGTERM reaches the tasks, at the start of a grace time and then without one: they save, and nothing is lost."""
    study = studies.write_long_run(tmp_path, shards, nodes=2)
    studies.launch(study)
    (folder,) = studies.run_folders(study)
    job = studies.last_job(study)
    for attempt, grace in ((1, 15), (2, 0)):
        run("scontrol", "update", "partition=low", f"gracetime={grace}")
        eventually(partial(trains, folder, attempt), f"attempt {attempt} trains", 180)
        run("srun", "--partition=high", "--nodes=4", "--exclusive", "true", seconds=120)
    studies.wait_until_completed(study)
    rows = rundir.read_lines(folder / rundir.METRICS)[0]
    assert sorted({row["attempt"] for row in rows}) == [1, 2, 3], studies.story(study)
    assert [row["step"] for row in rows] == list(range(1, studies.LONG_STEPS + 1))
    assert_undisturbed(study, alone)
    assert read_jobs([job])[job].restarts == 2


@pytest.mark.slurm
def test_a_cancelled_run_stays_cancelled_until_it_is_retried(cluster: Layout, tmp_path: Path, shards: Path) -> None:
    """Cancelled by our command, retried, and cancelled behind our back: it saves both times, and nothing starts it."""
    study = studies.write_long_run(tmp_path, shards, nodes=1, steps=100_000)
    studies.launch(study)
    (folder,) = studies.run_folders(study)
    first = studies.last_job(study)
    eventually(lambda: trains(folder, 1), "it trains", 120)
    told = armscale("study", "cancel", study.name, cwd=tmp_path)
    assert "1 of 1 runs cancelled" in told.stdout, told.stderr
    assert status(folder)["state"] == "cancelled"
    assert read_jobs([first])[first].state == "CANCELLED", studies.story(study)
    assert step_of(committed(folder)[-1]) > 0, "it saved on the way out"
    assert "0 of 1 runs submitted" in studies.launch(study)

    retried = armscale("study", "retry", study.name, "--site", "site.yaml", cwd=tmp_path)
    assert "1 of 1 runs submitted" in retried.stdout, retried.stderr
    second = studies.last_job(study)
    assert second != first
    eventually(lambda: trains(folder, 2), "it goes on", 120)
    run("scancel", second)
    eventually(lambda: not read_jobs([second])[second].alive, "the job ends")
    assert read_jobs([second])[second].state == "CANCELLED", studies.story(study)
    assert "0 of 1 runs submitted" in studies.launch(study)
    assert "cancelled" in armscale("study", "status", study.name, cwd=tmp_path).stdout
    steps = [row["step"] for row in rundir.read_lines(folder / rundir.METRICS)[0]]
    assert steps == list(range(1, len(steps) + 1)), "no step was lost or done twice"
    assert step_of(committed(folder)[-1]) == len(steps)


def rank_of(folder: Path, attempt: int) -> int:
    """The process of an attempt of one rank."""
    return int((folder / rundir.ATTEMPTS / str(attempt)).read_text().split()[1])


def has_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a process that is stopped."""
    pending = re.findall(r"^(?:Shd|Sig)Pnd:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in pending)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to hold a rank")
def test_a_run_out_of_time_saves_and_goes_on(cluster: Layout, tmp_path: Path, shards: Path, alone: Path) -> None:
    """Slurm announces the end of its time; the run saves every step, and nothing is done twice."""
    study = studies.write_long_run(tmp_path, shards, nodes=1)
    studies.launch(study)
    (folder,) = studies.run_folders(study)
    job = studies.last_job(study)
    eventually(lambda: trains(folder, 1), "it trains", 180)
    rank = rank_of(folder, 1)
    # Held, so that it does not end first: Slurm looks at time limits every half a minute.
    os.kill(rank, signal.SIGSTOP)
    run("scontrol", "update", f"jobid={job}", "endtime=now+100seconds")
    eventually(lambda: has_pending(rank, signal.SIGUSR2), "its time is up", 150)
    os.kill(rank, signal.SIGCONT)
    eventually(lambda: read_jobs([job])[job].restarts == 1, "it is requeued", 150)
    run("scontrol", "update", f"jobid={job}", "timelimit=10")
    studies.wait_until_completed(study)
    rows = rundir.read_lines(folder / rundir.METRICS)[0]
    assert [row["step"] for row in rows] == list(range(1, studies.LONG_STEPS + 1)), studies.story(study)
    assert read_starts(folder)[0].outcome == "requeued"
    assert_undisturbed(study, alone)


def state_of(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its logs."""
    files = (path for path in folder.rglob("*") if path.is_file() and rundir.LOGS not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to cut a node off")
def test_an_old_attempt_that_wakes_up_changes_nothing(
    cluster: Layout, tmp_path: Path, shards: Path, alone: Path
) -> None:
    """Its node freezes and is lost to Slurm, the run goes on elsewhere, and then the old processes wake up."""
    study = studies.write_long_run(tmp_path, shards, nodes=1, checkpoint_every=20)
    studies.launch(study)
    (folder,) = studies.run_folders(study)
    job = studies.last_job(study)
    eventually(lambda: trains(folder, 1), "it trains", 180)
    (node,) = (node for node in NODES if node.name == read_jobs([job])[job].nodes[0])
    daemons = [pid for pid in members(node) if "slurm" in Path(f"/proc/{pid}/comm").read_text()]
    frozen = [pid for pid in members(node) if pid not in daemons]
    assert rank_of(folder, 1) in frozen
    try:
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        for pid in daemons:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
        steps = len(rundir.read_lines(folder / rundir.METRICS)[0])
        eventually(lambda: trains(folder, 2), "it goes on elsewhere", 300)
        successor = rank_of(folder, 2)
        os.kill(successor, signal.SIGSTOP)
        before = state_of(folder)
        for pid in frozen:
            with suppress(ProcessLookupError):  # one that woke before it has ended it
                os.kill(pid, signal.SIGCONT)
        eventually(lambda: not {*frozen} & {*members(node)}, "the old processes end", 120)
        assert state_of(folder) == before
        assert read_jobs([job])[job].state == "RUNNING"
        os.kill(successor, signal.SIGCONT)
        studies.wait_until_completed(study)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{studies.story(study)}") from error
    finally:
        fail_node(node)
        start_node(cluster, node)
        eventually(lambda: is_up(cluster), "the node is back")
    assert_undisturbed(study, alone)
    second = [row["step"] for row in rundir.read_lines(folder / rundir.METRICS)[0] if row["attempt"] == 2]
    assert steps - 20 <= second[0] - 1 <= steps
    # The job writes its own end down a moment after the summary.
    eventually(lambda: [start.outcome for start in read_starts(folder)] == [CUT_OFF, "completed"], "its record")


@pytest.fixture
def fail(cluster: Layout) -> Iterator[Callable[[str], None]]:
    """Fails nodes as a power cut does; they are back afterwards."""
    failed: list[Host] = []

    def fail_named(name: str) -> None:
        (node,) = (node for node in NODES if node.name == name)
        failed.append(node)
        fail_node(node)

    yield fail_named
    for node in failed:
        start_node(cluster, node)
    eventually(lambda: is_up(cluster), "every node is back")


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to fail a node")
def test_a_run_whose_node_dies_goes_on_elsewhere(
    cluster: Layout, tmp_path: Path, shards: Path, alone: Path, fail: Callable[[str], None]
) -> None:
    """Its ranks fail first, and Slurm notices half a minute later: no failure of the run, and little is repeated."""
    study = studies.write_long_run(tmp_path, shards, nodes=2, checkpoint_every=20)
    studies.launch(study)
    (folder,) = studies.run_folders(study)
    job = studies.last_job(study)
    eventually(lambda: len(committed(folder)) > 1, "it saves", 180)
    second = read_jobs([job])[job].nodes[1]
    fail(second)
    studies.wait_until_completed(study)
    rows = rundir.read_lines(folder / rundir.METRICS)[0]
    steps = {number: [row["step"] for row in rows if row["attempt"] == number] for number in (1, 2)}
    assert steps[1] == list(range(1, len(steps[1]) + 1)), studies.story(study)
    assert steps[2] == list(range(steps[2][0], studies.LONG_STEPS + 1)), studies.story(study)
    assert steps[1][-1] - 20 <= steps[2][0] - 1 <= steps[1][-1]
    nodes = read_starts(folder)[-1].nodes
    assert len(nodes) == 2 and second not in nodes
    assert_undisturbed(study, alone)


@pytest.mark.slurm
def test_a_run_that_fails_on_healthy_nodes_has_failed(cluster: Layout, tmp_path: Path, shards: Path) -> None:
    """Nothing waits for a node that is not lost, and nothing starts the run again by itself."""
    unreadable = shutil.copytree(shards, tmp_path / "unreadable")
    for tar in (unreadable / "train").glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    study = studies.write_long_run(tmp_path, unreadable, nodes=2)
    studies.launch(study)
    job = studies.last_job(study)
    eventually(lambda: not read_jobs([job])[job].alive, "the job ends", 120)
    (folder,) = studies.run_folders(study)
    assert (read_jobs([job])[job].state, read_jobs([job])[job].restarts) == ("FAILED", 0), studies.story(study)
    assert status(folder)["state"] == "failed"
    assert "cannot be read" in status(folder)["error"]
    told = armscale("study", "status", study.name, cwd=tmp_path)
    assert "failed" in told.stdout and "cannot be read" in " ".join(told.stdout.split())
