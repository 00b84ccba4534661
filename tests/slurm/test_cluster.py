"""The cluster's texts and refusals, its processes on real namespaces, and (marked) what a job sees on it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import UserError
from slurm.cluster import machine, processes
from slurm.cluster.__main__ import main
from slurm.cluster.layout import (
    HOSTS,
    NODES,
    Host,
    Layout,
    add_hosts,
    gres_conf,
    remove_hosts,
    slurm_conf,
    slurmdbd_conf,
)
from tests.slurm.polling import eventually, run

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")
LAYOUT = Layout(Path("/srv/cluster"))


def settings(text: str) -> dict[str, str]:
    """{key: value} of the single-setting lines; Slurm's format is `Key=Value`, `#` starts a comment."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return dict(line.split("=", 1) for line in lines if line and " " not in line)


def records(text: str, key: str) -> dict[str, dict[str, str]]:
    """{name: {key: value}} of lines such as `NodeName=n1 NodeAddr=...`, with the DEFAULT line's values filled in."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if line.startswith(f"{key}="):
            values = dict(item.split("=", 1) for item in line.split())
            found[values[key]] = {**found.get("DEFAULT", {}), **values}
    return {name: values for name, values in found.items() if name != "DEFAULT"}


def test_slurm_conf_declares_every_node_with_its_devices() -> None:
    nodes = records(slurm_conf(LAYOUT), "NodeName")
    assert [(name, node["CPUs"], node["Gres"]) for name, node in nodes.items()] == [
        (f"n{number}", "4", "gpu:8") for number in (1, 2, 3, 4)
    ]
    assert len({node["NodeAddr"] for node in nodes.values()}) == 4
    first, last = map(int, re.fullmatch(r"Name=gpu File=\S+/gpu\[(\d)-(\d)\]\n", gres_conf(LAYOUT)).groups())
    assert [device.name for device in LAYOUT.gpus] == [f"gpu{index}" for index in range(first, last + 1)]
    assert last - first + 1 == 8


def test_high_preempts_low_and_nothing_preempts_high() -> None:
    text = slurm_conf(LAYOUT)
    partitions = records(text, "PartitionName")
    assert int(partitions["high"]["PriorityTier"]) > int(partitions["low"]["PriorityTier"])
    assert (partitions["low"]["PreemptMode"], partitions["high"]["PreemptMode"]) == ("REQUEUE", "OFF")
    assert "preempt_send_user_signal" in settings(text)["SlurmctldParameters"]
    assert all(partition["Nodes"] == "n1,n2,n3,n4" for partition in partitions.values())


@pytest.mark.parametrize("text", [slurm_conf(LAYOUT), gres_conf(LAYOUT), slurmdbd_conf(LAYOUT)])
def test_every_path_is_in_the_state_folder(text: str) -> None:
    paths = re.findall(r"(?<=[=(])/\S+", text)
    assert paths
    assert all(path.startswith("/srv/cluster/") for path in paths)


def test_daemons_and_accounting_share_one_munge_and_one_address() -> None:
    slurm, accounting = settings(slurm_conf(LAYOUT)), settings(slurmdbd_conf(LAYOUT))
    sockets = {
        slurm["AccountingStoragePass"],
        accounting["AuthInfo"],
        slurm["AuthInfo"].split(",")[0][len("socket=") :],
    }
    assert sockets == {str(LAYOUT.munge_socket)}
    assert slurm["AccountingStorageHost"] == accounting["DbdAddr"]


@given(st.lists(st.sampled_from(["127.0.0.1 localhost", "198.18.77.1 n1", "# a comment", "", "::1 ip6"]), max_size=6))
def test_names_are_added_once_and_removed_without_a_trace(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    named = add_hosts(text)
    assert add_hosts(named) == named
    assert remove_hosts(named) == text
    assert named[len(text) :].split()[:2] == [HOSTS[0].address, HOSTS[0].name]
    assert named[len(text) :].count("\n") == len(HOSTS)


def test_a_last_line_without_newline_stays_a_line_of_its_own() -> None:
    assert add_hosts("127.0.0.1 localhost").splitlines()[0] == "127.0.0.1 localhost"


@pytest.mark.parametrize("state", ["relative/folder", "/with space", "/with#mark", "/", "/" + "long/" * 20 + "folder"])
def test_unusable_state_folders_are_refused(state: str) -> None:
    with pytest.raises(UserError, match="--state"):
        machine.require_free_state(Layout(Path(state)))


def test_a_state_folder_with_files_of_others_is_refused_until_marked_as_ours(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    machine.require_free_state(layout)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="files of others"):
        machine.require_free_state(layout)
    layout.mark.touch()
    machine.require_free_state(layout)


def test_slurm_conf_in_the_environment_is_another_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layout = machine.linked_layout() or Layout(tmp_path)
    monkeypatch.setenv("SLURM_CONF", "/opt/site/slurm.conf")
    with pytest.raises(UserError, match=r"SLURM_CONF.*/opt/site/slurm\.conf"):
        machine.require_no_other_slurm(layout)


def test_a_state_folder_that_not_every_user_can_enter_is_refused(tmp_path: Path) -> None:
    private = tmp_path / "home"
    private.mkdir(mode=0o700)
    with pytest.raises(UserError, match=f"every user must be able to enter {private} "):
        machine.require_open_path(Layout(private / "cluster"))


@as_root
def test_only_root_may_start_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    os.seteuid(65534)
    try:
        status = main(["up", "--state", str(tmp_path / "state")])
    finally:
        os.seteuid(0)
    assert status == 2
    assert "root" in capsys.readouterr().err


@as_root
def test_one_command_at_a_time() -> None:
    with machine.exclusive(), pytest.raises(UserError, match="another one is running"), machine.exclusive():
        pass
    with machine.exclusive():
        pass


@pytest.fixture
def host() -> Iterator[Host]:
    """A namespace that is no part of the cluster."""
    host = Host(f"test{os.getpid()}", 250)
    run("ip", "netns", "add", host.namespace)
    yield host
    processes.kill([host])
    run("ip", "netns", "delete", host.namespace)


def inside(host: Host, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["nsenter", f"--net={processes.NAMESPACES / host.namespace}", "sh", "-c", script])


@as_root
def test_processes_of_a_host_end_and_those_outside_do_not(host: Host) -> None:
    outside = subprocess.Popen(["sleep", "60"])
    obedient = inside(host, "exec sleep 60")
    stubborn = inside(host, "trap '' TERM; sleep 60; sleep 60")
    eventually(lambda: len(processes.members(host)) == 3, "two shells' sleeps and one shell")
    processes.terminate([host], seconds=1)
    assert obedient.wait(timeout=10) == -15
    assert stubborn.poll() is None
    processes.kill([host])
    assert stubborn.wait(timeout=10) == -9
    assert processes.members(host) == []
    assert outside.poll() is None
    outside.kill()
    outside.wait()


@pytest.mark.slurm
@as_root
def test_another_slurm_is_refused_and_untouched(cluster: Layout) -> None:
    foreign = "mount -t tmpfs none /etc/slurm && echo ClusterName=site > /etc/slurm/slurm.conf"
    script = (
        f"{foreign} && {{ '{sys.executable}' -m slurm.cluster $0; echo status=$?; cat /etc/slurm/slurm.conf; }} 2>&1"
    )
    for command in ("up", "down"):
        # In a mount namespace of its own, so that the running cluster keeps its file.
        output = run("unshare", "--mount", "sh", "-c", script, command)
        assert "/etc/slurm/slurm.conf" in output
        assert output.endswith("status=2\nClusterName=site\n")


@pytest.mark.slurm
def test_sinfo_shows_four_nodes_of_eight_gpus(cluster: Layout) -> None:
    listing = run("sinfo", "--noheader", "--Node", "--partition=high", "--format=%N %c %G").splitlines()
    assert listing == [f"{node.name} 4 gpu:8" for node in NODES]


@pytest.mark.slurm
def test_two_nodes_have_their_own_names_and_networks_and_accounting_sees_the_job(cluster: Layout) -> None:
    script = 'echo "$(hostname) $(readlink /proc/self/ns/net) $SLURM_JOB_ID"'
    lines = [line.split() for line in run("srun", "--nodes=2", "--ntasks=2", "sh", "-c", script).splitlines()]
    names, networks, jobs = map(set, zip(*lines, strict=True))
    assert len(names) == 2
    assert names <= {node.name for node in NODES}
    assert len(networks | {str(Path("/proc/self/ns/net").readlink())}) == 3
    (job,) = jobs
    account = ("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State")
    eventually(lambda: run(*account) == "COMPLETED\n", f"job {job} completed in sacct")


@pytest.mark.slurm
def test_a_wrong_rendezvous_address_fails(cluster: Layout, tmp_path: Path) -> None:
    """One task listens on its own name; the other reaches it by that name, and not by localhost."""
    script = tmp_path / "meet.py"
    script.write_text(
        "import os, pathlib, socket, sys, time\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "if os.environ['SLURM_PROCID'] == '0':\n"
        "    server = socket.create_server((socket.gethostname(), 0))\n"
        "    server.settimeout(30)\n"
        "    (place / 'new').write_text(f'{socket.gethostname()} {server.getsockname()[1]}')\n"
        "    (place / 'new').rename(place / 'address')\n"
        "    server.accept()\n"
        "else:\n"
        "    while not (place / 'address').exists(): time.sleep(0.1)\n"
        "    name, port = (place / 'address').read_text().split()\n"
        "    for host in ('localhost', name):\n"
        "        with socket.socket() as client: print(host == name, client.connect_ex((host, int(port))) == 0)\n"
    )
    output = run("srun", "--nodes=2", "--ntasks=2", sys.executable, str(script), str(tmp_path))
    assert output.splitlines() == ["False False", "True True"]


VICTIM = """#!/bin/sh
attempt=${SLURM_RESTART_COUNT:-0}
trap 'echo signal $attempt' USR1
echo start $attempt
[ $attempt = 1 ] && exit 0
while :; do sleep 0.2; done
"""


@pytest.mark.slurm
def test_a_high_job_preempts_a_low_one_which_gets_its_signal_and_runs_again(cluster: Layout, tmp_path: Path) -> None:
    script, log = tmp_path / "victim.sh", tmp_path / "log"
    script.write_text(VICTIM)
    options = ["--partition=low", "--nodes=4", "--exclusive", "--requeue", "--signal=B:USR1@30", "--time=60"]
    output = [f"--output={log}", "--open-mode=append"]
    job = run("sbatch", "--parsable", *options, *output, str(script)).strip()
    try:
        eventually(lambda: log.exists() and log.read_text() == "start 0\n", "the low job runs")
        run("srun", "--partition=high", "--nodes=4", "--exclusive", "true", seconds=90)
        # Slurm adds a line of its own between: *** JOB 6 ON n1 CANCELLED AT ... DUE TO PREEMPTION ***
        eventually(
            lambda: re.findall(r"^\w+ \d$", log.read_text(), re.M) == ["start 0", "signal 0", "start 1"], "requeue"
        )
        state = ("scontrol", "show", "job", job)
        eventually(lambda: "JobState=COMPLETED" in run(*state), "the requeued job completes")
        assert "Restarts=1" in run(*state)
    finally:
        run("scancel", job)
