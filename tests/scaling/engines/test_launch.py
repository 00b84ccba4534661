"""Ranks started without torchrun: by plain environment variables, and as the tasks of a Slurm step."""

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling import rundir
from scaling.config import DeepSpeedConfig
from tests.scaling.runs import BATCH, command, curve, environment, small_config, write_run


def plain(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}


def slurm_task(rank: int) -> dict[str, str]:
    return {
        "SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank), "SLURM_NNODES": "1",
        "SLURM_STEP_ID": "0",
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(("variables", "engine"), [(plain, "fsdp"), (plain, "deepspeed"), (slurm_task, "deepspeed")])
def test_two_ranks(tmp_path: Path, shards: Path, variables: Callable[[int], dict[str, str]], engine: str) -> None:
    """DeepSpeed reads LOCAL_RANK and LOCAL_WORLD_SIZE of the environment, which a Slurm task does not have."""
    config = small_config(
        shards, strategy="mae", images=2 * BATCH, engine=engine, deepspeed=DeepSpeedConfig(stage=3, offload=True)
    )
    folder = write_run(config, tmp_path)
    shared = {name: value for name, value in environment().items() if not name.startswith(("SLURM_", "LOCAL_"))}
    shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    logs = [tmp_path / f"rank-{rank}.log" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as output:
            processes.append(
                subprocess.Popen(command(folder), env=shared | variables(rank), stdout=output, stderr=output)
            )
    statuses = [process.wait() for process in processes]
    assert statuses == [0, 0], [log.read_text() for log in logs]
    rows = rundir.read_lines(folder / rundir.METRICS)[0]
    assert [step for step, _, _ in curve(rows)] == [1, 2]
    assert rows[-1]["devices"] == 2
    assert (folder / rundir.SUMMARY).is_file()
