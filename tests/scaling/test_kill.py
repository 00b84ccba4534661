"""kill -9 at drawn moments, also inside a checkpoint write: then the curve and weights of an undisturbed run."""

import dataclasses
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from scaling import rundir
from scaling.checkpoint import committed
from tests.scaling.runs import carry_out, command, curve, environment, rank_pids, small_config, write_run

FULL = bool(os.environ.get("ARMSCALE_FULL"))
OPTIONS = {"drop_path": 0.2, "ema": 0.5, "mixup": 0.8, "cutmix": 1.0, "mix_group": 4, "randaugment": "", "lr": 1e-3}
STEPS_A_KILL = 20
KILLS = [("single", 1, 24), ("ddp", 2, 8), ("fsdp", 2, 8), ("deepspeed", 2, 8)]
if not FULL:
    KILLS = [("single", 1, 6), ("fsdp", 2, 2), ("deepspeed", 2, 2)]


def start(folder: Path, ranks: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(folder, ranks=ranks),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def steps_of(folder: Path) -> int:
    """Steps that are recorded, those made twice counted twice."""
    return len(rundir.read_lines(folder / rundir.METRICS)[0])


def unfinished(folder: Path) -> set[str]:
    """Folders of checkpoints that are being written, or whose writing was killed."""
    return {path.name for path in (folder / rundir.CHECKPOINTS).glob(".step-*")}


def wait_for_a_write(
    folder: Path, process: subprocess.Popen[bytes], ranks: int, drawn: random.Random
) -> dict[int, int]:
    """Until a drawn moment inside the write of one of the first checkpoints; the ranks' processes."""
    old, wanted, seen, pids = unfinished(folder), drawn.randint(1, 3), set[str](), dict[int, int]()
    while process.poll() is None:
        if len(pids) < ranks:
            time.sleep(0.02)
            pids = pids_of(process, ranks)
        seen |= unfinished(folder) - old
        time.sleep(drawn.uniform(0, 0.01) if len(seen) >= wanted else 0.0005)
        if len(seen) >= wanted and unfinished(folder) - old:
            break
    return pids


def wait_for_any_moment(folder: Path, process: subprocess.Popen[bytes], until: float) -> None:
    """Until the time `until`, or some steps more where the machine is quicker than it was."""
    rows = steps_of(folder)
    while process.poll() is None and time.monotonic() < until and steps_of(folder) < rows + STEPS_A_KILL // 2:
        time.sleep(0.005)


def pids_of(process: subprocess.Popen[bytes], ranks: int) -> dict[int, int]:
    return rank_pids(process.pid) if ranks > 1 else {0: process.pid}


def kill(process: subprocess.Popen[bytes], pids: dict[int, int], ranks: int, drawn: random.Random) -> bool:
    """Kills a drawn rank, and torchrun ends the others; whether all were running."""
    alive = process.poll() is None and len(pids) == ranks
    if alive:
        os.kill(pids[drawn.randrange(ranks)], signal.SIGKILL)
    elif process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def started(folder: Path, process: subprocess.Popen[bytes]) -> float:
    """Seconds until the run has made half of the steps that it makes between two kills."""
    began = time.monotonic()
    while process.poll() is None and steps_of(folder) < STEPS_A_KILL // 2:
        time.sleep(0.01)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "ranks", "kills"), KILLS)
def test_killed_at_drawn_moments(tmp_path: Path, shards: Path, engine: str, ranks: int, kills: int) -> None:
    """Every second kill inside a write, the others at any moment from start-up on; to the bit alone, else to 1e-6."""
    options = OPTIONS | {"images": 16 * STEPS_A_KILL * kills, "keep_checkpoints": 3}
    config = dataclasses.replace(small_config(shards, stage="finetune", strategy="scratch", **options), engine=engine)
    whole, broken = write_run(config, tmp_path / "whole"), write_run(config, tmp_path / "broken")
    undisturbed = start(whole, ranks)
    seconds = started(whole, undisturbed)
    assert undisturbed.wait() == 0
    expected = curve(rundir.read_lines(whole / rundir.METRICS)[0])
    drawn, killed, torn = random.Random(0), 0, 0
    while killed < kills and not (broken / rundir.SUMMARY).exists():
        old, process = unfinished(broken), start(broken, ranks)
        if killed % 2 == 0:
            pids = wait_for_a_write(broken, process, ranks, drawn)
        else:
            wait_for_any_moment(broken, process, time.monotonic() + drawn.uniform(0, seconds))
            pids = pids_of(process, ranks)
        writing = bool(unfinished(broken) - old)
        alive = kill(process, pids, ranks, drawn)
        killed, torn = killed + alive, torn + (alive and writing)
        print(f"{engine}: {killed} kills, {torn} inside a write, {len(committed(broken))} checkpoints", flush=True)
    ours = curve(carry_out(broken, ranks=ranks))
    assert (killed, torn >= kills // 2) == (kills, True), (killed, torn)
    if ranks == 1:
        assert ours == expected
        mine, theirs = (load_file(folder / "weights.safetensors") for folder in (broken, whole))
        assert all((mine[name] == theirs[name]).all() for name in theirs)
    for one, other in zip(ours, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    summaries = [rundir.read_json(folder / rundir.SUMMARY) or {} for folder in (broken, whole)]
    assert summaries[0]["top1"] == summaries[1]["top1"]
