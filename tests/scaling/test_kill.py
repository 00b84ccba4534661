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
from tests.scaling.runs import carry_out, command, curve, environment, rank_pids, small_config, write_run

FULL = bool(os.environ.get("ARMSCALE_FULL"))
OPTIONS = {"drop_path": 0.2, "ema": 0.5, "mixup": 0.8, "cutmix": 1.0, "mix_group": 4, "randaugment": "", "lr": 1e-3}
MOST_SECONDS = 120.0


def kill_in_a_write(folder: Path, process: subprocess.Popen[bytes], ranks: int, drawn: random.Random) -> bool:
    """Kills a drawn rank inside the write of one of the first checkpoints; whether it still ran."""
    wanted, seen, late = drawn.randint(1, 3), set[str](), drawn.uniform(0, 0.01)
    while process.poll() is None and len(seen) < wanted:
        seen |= {path.name for path in (folder / rundir.CHECKPOINTS).glob(".step-*")}
        time.sleep(0.0005)
    time.sleep(late)
    return kill(process, ranks, drawn)


def kill(process: subprocess.Popen[bytes], ranks: int, drawn: random.Random) -> bool:
    pids = rank_pids(process.pid) if ranks > 1 else {0: process.pid}
    alive = process.poll() is None and len(pids) == ranks
    if alive:
        os.kill(pids[drawn.randrange(ranks)], signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()
    return alive


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "ranks", "kills"), [("single", 1, 24 if FULL else 6), ("ddp", 2, 8 if FULL else 2)])
def test_killed_at_drawn_moments(tmp_path: Path, shards: Path, engine: str, ranks: int, kills: int) -> None:
    """Every second kill inside a write, the others at any moment from start-up on; to the bit alone, else to 1e-6."""
    options = OPTIONS | {"images": 16 * (10 * kills), "keep_checkpoints": 3}
    config = dataclasses.replace(small_config(shards, stage="finetune", strategy="scratch", **options), engine=engine)
    whole, broken = write_run(config, tmp_path / "whole"), write_run(config, tmp_path / "broken")
    began = time.monotonic()
    expected = curve(carry_out(whole, ranks=ranks))
    seconds = time.monotonic() - began
    drawn, killed = random.Random(0), []
    while len(killed) < kills and not (broken / rundir.SUMMARY).exists():
        process = subprocess.Popen(
            command(broken, ranks=ranks), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if len(killed) % 2 == 0:
            killed.append(kill_in_a_write(broken, process, ranks, drawn))
        else:
            time.sleep(drawn.uniform(0.2, 0.6) * min(seconds, MOST_SECONDS))
            killed.append(kill(process, ranks, drawn))
        left = sorted(path.name for path in (broken / rundir.CHECKPOINTS).glob("*step*"))
        print(f"kill {len(killed)} of {engine}: {killed[-1]}, {left}")
    ours = curve(carry_out(broken, ranks=ranks))
    assert sum(killed) >= kills // 2
    if ranks == 1:
        assert ours == expected
        mine, theirs = (load_file(folder / "weights.safetensors") for folder in (broken, whole))
        assert all((mine[name] == theirs[name]).all() for name in theirs)
    for one, other in zip(ours, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    summaries = [rundir.read_json(folder / rundir.SUMMARY) or {} for folder in (broken, whole)]
    assert summaries[0]["top1"] == summaries[1]["top1"]
