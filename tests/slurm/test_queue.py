"""Reading squeue, sacct and scontrol: what Slurm 22.05 really printed (captured/), and (marked) a live cluster."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import UserError
from slurm.cluster.layout import NODES, Layout
from slurm.cluster.lifecycle import fail_node, node_states, start_node
from slurm.queue import (
    ControllerError,
    Job,
    expand_hosts,
    largest_array,
    last_attempts,
    parse_sacct,
    parse_settings,
    parse_squeue,
    read_attempts,
    read_jobs,
    read_settings,
)
from tests.slurm.polling import eventually, run

CAPTURED = Path(__file__).parent / "captured"
# What the captured jobs were, by their own account: 6 an array (exit 0, exit 3, kill -9, sleeps), 7 ran out of time,
# 8 was cancelled, 9 waits for 6, 10 and 11 lost their node with and without requeue, 12 was held, 20 runs on three
# nodes, 21 an array of seven with two at once, 22 was requeued by hand a moment before.


@pytest.fixture(scope="module")
def queue() -> dict[str, Job]:
    return {job.id: job for job in parse_squeue((CAPTURED / "squeue.txt").read_text())}


def test_squeue_states_reasons_and_nodes(queue: dict[str, Job]) -> None:
    assert len(queue) == 22
    assert {job_id for job_id, job in queue.items() if job.alive} == {
        "9", "12", "20", "21_0", "21_1", "21_2", "21_3", "21_4", "21_5", "21_9", "22",
    }  # fmt: skip
    assert queue["20"] == Job("20", "RUNNING", "", ("n1", "n2", "n4"), 0, 0, 0, "wrap")
    assert (queue["7"].state, queue["7"].reason) == ("TIMEOUT", "TimeLimit")
    assert [job.id for job in queue.values() if job.blocked] == ["9"]
    assert queue["12"].reason == "JobHeldUser"


def test_squeue_exit_codes_and_signals_are_those_the_scripts_gave(queue: dict[str, Job]) -> None:
    assert [(queue[f"6_{task}"].exit_code, queue[f"6_{task}"].signal) for task in range(3)] == [(0, 0), (3, 0), (0, 9)]


def test_a_requeued_job_is_alive_in_squeue_whatever_its_past(queue: dict[str, Job]) -> None:
    assert (queue["22"].state, queue["22"].restarts) == ("RUNNING", 1)
    assert (queue["10"].state, queue["10"].restarts) == ("COMPLETED", 1)
    assert (queue["11"].state, queue["11"].restarts, queue["11"].alive) == ("NODE_FAIL", 0, False)


def test_sacct_keeps_every_attempt_in_order() -> None:
    attempts = parse_sacct((CAPTURED / "sacct.txt").read_text())
    assert [attempt.state for attempt in attempts if attempt.id == "10"] == ["NODE_FAIL", "COMPLETED"]
    assert [attempt.state for attempt in attempts if attempt.id == "22"] == ["REQUEUED", "RUNNING"]
    (timeout,) = [attempt for attempt in attempts if attempt.id == "7"]
    assert timeout.started is not None
    assert timeout.ended is not None
    assert 60 <= timeout.ended - timeout.started < 120, "its limit was one minute; Slurm looks every 30 s"
    assert next(attempt.state for attempt in attempts if attempt.id == "8") == "CANCELLED"
    waiting = [attempt for attempt in attempts if attempt.id.startswith("21_") and attempt.state == "PENDING"]
    assert [attempt.id for attempt in waiting] == ["21_2", "21_3", "21_4", "21_5", "21_9"]
    assert all(attempt.nodes == () and attempt.started is None for attempt in waiting)


def test_accounting_and_controller_agree_on_ended_jobs(queue: dict[str, Job]) -> None:
    last = {job.id: job for job in last_attempts(parse_sacct((CAPTURED / "sacct.txt").read_text()))}
    assert last.keys() == queue.keys()
    for job_id, job in queue.items():
        assert (last[job_id].state, last[job_id].nodes, last[job_id].restarts) == (job.state, job.nodes, job.restarts)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ""),
        ("n1", "n1"),
        ("n[1-2,4]", "n1 n2 n4"),
        ("gpu[08-10],login", "gpu08 gpu09 gpu10 login"),
        ("r[1-2]n[01-02]", "r1n01 r1n02 r2n01 r2n02"),
        ("21_[2-3,9]", "21_2 21_3 21_9"),
    ],
)
def test_short_forms_are_expanded(text: str, names: str) -> None:
    assert list(expand_hosts(text)) == names.split()


@given(st.integers(0, 99), st.integers(0, 50), st.integers(1, 4))
def test_ranges_keep_their_width(first: int, count: int, width: int) -> None:
    text = f"n[{first:0{width}d}-{first + count:0{width}d}]"
    assert list(expand_hosts(text)) == [f"n{number:0{width}d}" for number in range(first, first + count + 1)]


def test_settings() -> None:
    text = "Configuration data as of 17\nMaxArraySize            = 1001\nAuthInfo = socket=/run/m,cred_expire=5\n\nUP\n"
    assert parse_settings(text) == {"MaxArraySize": "1001", "AuthInfo": "socket=/run/m,cred_expire=5"}


def test_a_site_may_allow_fewer_tasks_than_numbers() -> None:
    assert (
        largest_array({"MaxArraySize": "100001", "SchedulerParameters": "defer,max_array_tasks=1000,bf_window=60"})
        == 1000
    )
    assert largest_array({"MaxArraySize": "1001", "SchedulerParameters": "(null)"}) == 1001


def test_no_slurm_is_the_users_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"--cluster.*squeue is not installed"):
        read_jobs(["1"])
    assert read_jobs([]) == {}


def submit(script: str, *options: str) -> str:
    return run("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}").strip()


def state(job_id: str) -> str | None:
    job = read_jobs([job_id]).get(job_id)
    return job and job.state


@pytest.mark.slurm
def test_an_array_is_read_whole_or_by_task(cluster: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    # A user's own defaults must not hide jobs or change columns.
    monkeypatch.setenv("SQUEUE_USERS", "nobody")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    array = submit("exit $SLURM_ARRAY_TASK_ID", "--array=0-4%2")
    expected = {f"{array}_{task}": task for task in range(5)}
    assert read_jobs([array]).keys() == expected.keys()
    assert read_jobs([f"{array}_1", f"{array}_3"]).keys() == {f"{array}_1", f"{array}_3"}
    eventually(lambda: not any(job.alive for job in read_jobs([array]).values()), "the array ends")
    assert {job.id: job.exit_code for job in read_jobs([array]).values()} == expected


@pytest.mark.slurm
def test_names_are_expanded_as_slurm_does(cluster: Layout) -> None:
    for text in ("n[1-2,4]", "gpu[08-10],login", "r[1-2]n[01-02]", "n[1-3,08,9-11],x"):
        assert list(expand_hosts(text)) == run("scontrol", "show", "hostnames", text).split()


@pytest.mark.slurm
def test_unknown_jobs_are_left_out_beside_known_ones(cluster: Layout) -> None:
    held = submit("true", "--hold")
    try:
        assert read_jobs(["99999999"]) == {}
        assert read_jobs(["99999999", held]).keys() == {held}
    finally:
        run("scancel", held)


@pytest.mark.slurm
def test_a_child_of_a_failed_job_is_blocked(cluster: Layout) -> None:
    parent = submit("exit 1")
    child = submit("true", f"--dependency=afterok:{parent}")
    try:
        eventually(lambda: read_jobs([child])[child].blocked, "the child is blocked")
    finally:
        run("scancel", child)


def altered(layout: Layout, folder: Path, pattern: str, replacement: str) -> str:
    """The cluster's slurm.conf as a client on another site might have it."""
    text, count = re.subn(pattern, replacement, layout.slurm_conf.read_text(), flags=re.M)
    assert count > 0
    path = folder / "slurm.conf"
    path.write_text(text)
    return str(path)


@pytest.mark.slurm
def test_without_accounting_the_controller_is_enough(
    cluster: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = submit("exit 7")
    eventually(lambda: state(job) == "FAILED", "the job fails")
    monkeypatch.setenv("SLURM_CONF", altered(cluster, tmp_path, r"^AccountingStorage.*\n", ""))
    assert read_attempts([job]) is None
    assert read_jobs([job])[job].exit_code == 7
    assert read_jobs(["99999999"]) == {}


@pytest.mark.slurm
def test_without_sacct_the_controller_is_enough(
    cluster: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "squeue").symlink_to(str(shutil.which("squeue")))
    held = submit("true", "--hold")
    try:
        with monkeypatch.context() as without:
            without.setenv("PATH", str(tmp_path))
            assert read_jobs(["99999999", held]).keys() == {held}
    finally:
        run("scancel", held)


@pytest.mark.slurm
def test_a_silent_controller_says_nothing_about_jobs(
    cluster: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert int(read_settings()["MaxArraySize"]) > 1
    # Port 9 (discard): nobody listens there.
    conf = altered(cluster, tmp_path, r"^ClusterName", "SlurmctldPort=9\nMessageTimeout=2\nClusterName")
    monkeypatch.setenv("SLURM_CONF", conf)
    for read in (lambda: read_jobs(["1"]), read_settings):
        with pytest.raises(ControllerError):
            read()


@pytest.mark.slurm
@pytest.mark.slow
def test_accounting_remembers_what_the_controller_forgets(cluster: Layout) -> None:
    job = submit("exit 5")
    eventually(
        lambda: run("squeue", "--noheader", "--states=all", "--format=%i").split().count(job) == 0, "forgotten", 150
    )
    eventually(lambda: state(job) == "FAILED", "accounting knows it")
    assert read_jobs([job])[job] == Job(job, "FAILED", "", read_jobs([job])[job].nodes, 0, 5, 0, "wrap")


@pytest.fixture
def doomed(cluster: Layout) -> Iterator[str]:
    """The name of the node that a test fails; it is back afterwards."""
    node = NODES[3]
    yield node.name
    fail_node(node)
    start_node(cluster, node)
    eventually(lambda: node_states(cluster)[node.name] == "idle", "the node is back")


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to fail a node")
def test_node_failure_is_the_past_of_a_requeued_job_and_the_end_of_another(cluster: Layout, doomed: str) -> None:
    place = (f"--nodelist={doomed}", "--ntasks=1")
    requeued = submit('[ "$SLURM_RESTART_COUNT" ] || sleep 600', *place, "--requeue")
    final = submit("sleep 600", *place, "--no-requeue")
    eventually(lambda: [state(job) for job in (requeued, final)] == ["RUNNING"] * 2, "both run")
    fail_node(NODES[3])
    eventually(lambda: state(final) == "NODE_FAIL", "the node's failure is noticed", 150)
    assert read_jobs([requeued])[requeued].alive
    start_node(cluster, NODES[3])
    eventually(lambda: state(requeued) == "COMPLETED", "the requeued job completes", 150)
    assert read_jobs([requeued])[requeued].restarts == 1

    def states(job: str) -> list[str]:
        return [attempt.state for attempt in read_attempts([job]) or []]

    eventually(lambda: states(requeued) == ["NODE_FAIL", "COMPLETED"], "accounting has both attempts")
    assert states(final) == ["NODE_FAIL"]
