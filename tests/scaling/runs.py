"""Small run folders for tests: a config over the drawn shapes, and the processes that carry it out."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from models.config import ARConfig, MAEConfig
from scaling import rundir
from scaling.config import STAGE_DEFAULTS, DataConfig, ModelConfig, RunConfig
from scaling.reading import dump
from scaling.start import run_folder

HOME = Path(__file__).resolve().parents[2]
STEPS, BATCH = 6, 16


def small_config(shards: Path, stage: str = "pretrain", strategy: str = "ar", **changes: Any) -> RunConfig:
    """Two blocks of 32 channels over 8 x 8 patches; `changes` go to the fields of train, or else of the run."""
    train_fields = {item.name for item in dataclasses.fields(STAGE_DEFAULTS[stage])}
    train = {name: value for name, value in changes.items() if name in train_fields}
    rest = {name: value for name, value in changes.items() if name not in train_fields}
    base: dict[str, Any] = {
        "images": STEPS * BATCH, "global_batch": BATCH, "image_size": 32, "lr": 1e-3, "warmup": 0.2, "log_every": 1,
        "checkpoint_every": 2, "eval_resize": "none", "eval_batch": 48,
    }  # fmt: skip
    return RunConfig(
        **{
            "study": "test",
            "strategy": strategy,
            "size": "pico",
            "stage": stage,
            "data": DataConfig(shards=str(shards), lanes=4),
            "model": ModelConfig(depth=2, width=32, patch_size=4),
            "ar": ARConfig(cluster_side=2, decoder_depth=2, decoder_width=32),
            "mae": MAEConfig(decoder_depth=1, decoder_width=32, decoder_heads=1),
            "train": dataclasses.replace(STAGE_DEFAULTS[stage], **base | train),
        }
        | rest
    )


def write_run(config: RunConfig, root: Path) -> Path:
    """The run folder of `config` under `root`, with its config.yaml."""
    folder = run_folder(config, root / "new.yaml", root)
    folder.mkdir(parents=True)
    (folder / rundir.CONFIG).write_text(dump(dataclasses.replace(config, run=folder.name)))
    return folder


def command(folder: Path, *overrides: str, ranks: int = 1) -> list[str]:
    """The command line of the run in `folder`, under torchrun for several ranks."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [
        *start,
        "-m",
        "scaling.cli",
        "run",
        str(folder / rundir.CONFIG),
        "--root",
        str(folder.parents[1]),
        *overrides,
    ]


def environment() -> dict[str, str]:
    """Our checkout first, one thread a process."""
    return os.environ | {"PYTHONPATH": str(HOME), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


def carry_out(folder: Path, *overrides: str, ranks: int = 1, status: int = 0) -> list[dict[str, Any]]:
    """Carries the run out in its own processes and returns its metrics."""
    ended = subprocess.run(
        command(folder, *overrides, ranks=ranks), env=environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    return rundir.read_lines(folder / rundir.METRICS)[0]


def curve(rows: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of the attempt that counts, by step."""
    newest = {row["step"]: row for row in sorted(rows, key=lambda row: row["attempt"])}
    return [(step, newest[step]["loss"], newest[step]["grad_norm"]) for step in sorted(newest)]


def rank_pids(launcher: int) -> dict[int, int]:
    """{rank: process} of the ranks below a torchrun."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue  # it has just ended
        rank = next((int(item[5:]) for item in variables if item.startswith(b"RANK=")), None)
        if parent == launcher and rank is not None:
            found[rank] = int(entry.name)
    return found
