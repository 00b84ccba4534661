"""Sharded runs against runs on one rank: the same curves, evaluations and weights, however they are spread and resumed.

Processes are slow to start, so a launch carries out all the runs that want its number of ranks.
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scaling import rundir
from scaling.checkpoint import COMMIT, committed, step_name
from scaling.config import DeepSpeedConfig, FSDPConfig, RunConfig
from scaling.engines import build_engine
from scaling.environment import Rank
from scaling.errors import UserError
from scaling.reading import dump, load_run
from scaling.weights import WEIGHTS
from tests.scaling.engines.launch import launch
from tests.scaling.runs import BATCH, curve, small_config, write_run

MIXED = {"drop_path": 0.2, "ema": 0.5, "mixup": 0.8, "cutmix": 1.0, "mix_group": 2, "randaugment": ""}
FULL = bool(os.environ.get("ARMSCALE_FULL"))
STEPS = 20 if FULL else 6
EVERY = STEPS // 3  # steps between two checkpoints

OFFLOAD, WHOLE_BLOCKS = FSDPConfig(offload=True), FSDPConfig(reshard_after_forward=False)
HYBRID = FSDPConfig(replicas=2)


def zero(stage: int, offload: bool = False, **changes: Any) -> dict[str, Any]:
    return {"engine": "deepspeed", "deepspeed": DeepSpeedConfig(stage, offload), **changes}


TWO_RANKS: dict[str, dict[str, Any]] = {
    "sharded": {},
    "offload-accumulation": {"fsdp": OFFLOAD, "micro_batch": 4},
    "whole-checkpointing": {"fsdp": WHOLE_BLOCKS, "checkpointing": True},
    "zero1-accumulation": zero(1, micro_batch=4),
    "zero2-offload": zero(2, offload=True),
    "zero3": zero(3),
}
FOUR_RANKS: dict[str, dict[str, Any]] = {
    "four": {"checkpointing": True},
    "hybrid": {"fsdp": HYBRID},
    "hybrid-offload": {"fsdp": FSDPConfig(replicas=2, offload=True)},
    "zero3-accumulation-checkpointing": zero(3, micro_batch=2, checkpointing=True),
}
if FULL:
    TWO_RANKS |= {
        "ddp": {"engine": "ddp", "micro_batch": 4},
        "zero1": zero(1),
        "zero1-offload": zero(1, offload=True, micro_batch=4),
        "zero2-accumulation": zero(2, micro_batch=4, checkpointing=True),
        "zero3-offload": zero(3, offload=True, micro_batch=4),
    }
    FOUR_RANKS |= {
        "ddp-four": {"engine": "ddp"},
        "offload-four": {"fsdp": OFFLOAD, "micro_batch": 2},
        "hybrid-accumulation": {"fsdp": HYBRID, "micro_batch": 2},
        "zero1-four": zero(1, micro_batch=2),
        "zero2-four": zero(2, offload=True, micro_batch=2),
        "zero3-four-offload": zero(3, offload=True),
    }


BF16: dict[int, dict[str, dict[str, Any]]] = {
    1: {"single": {"engine": "single"}},
    2: {"fsdp": {}, "ddp": {"engine": "ddp"}, "zero1": zero(1), "zero3": zero(3)},
}


def recipe(shards: Path, stage: str) -> RunConfig:
    """MAE's masks, or mixing and drop path, with the average."""
    common: dict[str, Any] = {"images": STEPS * BATCH, "checkpoint_every": EVERY, "keep_checkpoints": 4}
    if stage == "pretrain":
        return small_config(shards, strategy="mae", ema=0.5, **common)
    return small_config(shards, stage=stage, strategy="scratch", **MIXED, **common)


def spread(config: RunConfig, micro_batch: int | None = None, engine: str = "fsdp", **changes: Any) -> RunConfig:
    train = dataclasses.replace(config.train, micro_batch=micro_batch)
    return dataclasses.replace(config, engine=engine, train=train, **changes)


def curve_of(folder: Path) -> list[tuple[int, float, float]]:
    return curve(rundir.read_lines(folder / rundir.METRICS)[0])


def losses_of(folder: Path) -> dict[str, float]:
    return {row["weights"]: row["loss"] for row in rundir.read_lines(folder / rundir.EVALUATIONS)[0]}


def assert_same(ours: Path, theirs: Path, rel: float = 1e-5) -> None:
    """Losses and gradient norms of every step, losses on the test split, exported weights."""
    assert len(curve_of(theirs)) == STEPS
    for mine, expected in zip(curve_of(ours), curve_of(theirs), strict=True):
        assert mine == pytest.approx(expected, rel=rel)
    assert losses_of(ours) == pytest.approx(losses_of(theirs), rel=rel)
    assert set(losses_of(ours)) == {"raw", "ema"}
    mine, expected_weights = load_file(ours / WEIGHTS), load_file(theirs / WEIGHTS)
    assert mine.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(mine[name], tensor, rtol=100 * rel, atol=10 * rel)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """root/<variant>/test/<run> for both stages on one, two and four ranks."""
    root = tmp_path_factory.mktemp("runs")
    for ranks, variants in ((1, {"single": {"engine": "single"}}), (2, TWO_RANKS), (4, FOUR_RANKS)):
        configs = [(name, recipe(shards, stage)) for name in variants for stage in ("pretrain", "finetune")]
        folders = [write_run(spread(config, **variants[name]), root / name) for name, config in configs]
        half = dataclasses.replace(configs[1][1], precision="bf16")
        for name, changes in BF16.get(ranks, {}).items():
            folders.append(write_run(spread(half, **changes), root / f"bf16-{name}"))
        launch("several", *folders, ranks=ranks)
    return root


def run_of(root: Path, variant: str, stage: str) -> Path:
    (folder,) = (root / variant / "test").glob(f"*-{stage}-*")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("variant", [*TWO_RANKS, *FOUR_RANKS])
def test_equal_to_one_rank(root: Path, variant: str, stage: str) -> None:
    """With masks, drop path, mixing and the average on."""
    assert_same(run_of(root, variant, stage), run_of(root, "single", stage))


@pytest.mark.slow
@pytest.mark.parametrize("variant", BF16[2])
def test_bf16_stays_close(root: Path, variant: str) -> None:
    assert_same(run_of(root, f"bf16-{variant}", "finetune"), run_of(root, "bf16-single", "finetune"), rel=1e-2)


def taken_back(folder: Path, root: Path, step: int, **changes: Any) -> Path:
    """A copy under `root` of the run as it stood when `step` was committed, spread in another way."""
    copy = root / folder.parent.name / folder.name
    if copy != folder:
        shutil.copytree(folder, copy)
    (copy / rundir.SUMMARY).unlink()
    for checkpoint in committed(copy):
        if checkpoint.name > step_name(step):
            (checkpoint / COMMIT).unlink()
    assert committed(copy)[-1].name == step_name(step)
    config = load_run(copy / rundir.CONFIG)
    (copy / rundir.CONFIG).write_text(dump(spread(config, **changes)))
    return copy


@pytest.mark.slow
def test_resumed_at_other_world_sizes_and_under_other_engines(root: Path, tmp_path: Path) -> None:
    """2 -> 1 -> 4 ranks, sharded -> single -> ddp, single -> offloaded, FSDP -> ZeRO-3 -> FSDP, ZeRO-3 -> 1 -> 2.

    One run has nothing left but its evaluation.
    """
    sharded, single = run_of(root, "sharded", "finetune"), run_of(root, "single", "finetune")
    resized = taken_back(sharded, tmp_path / "resized", EVERY)
    switched = taken_back(sharded, tmp_path / "switched", EVERY, engine="single")
    launch("several", resized, switched, ranks=1)
    there = taken_back(sharded, tmp_path / "there", EVERY, **zero(3))
    smaller = taken_back(run_of(root, "zero3", "finetune"), tmp_path / "smaller", EVERY, **zero(1))
    launch("several", there, smaller, ranks=2)
    taken_back(resized, tmp_path / "resized", 2 * EVERY, fsdp=HYBRID)
    taken_back(switched, tmp_path / "switched", 2 * EVERY, engine="ddp")
    taken_back(there, tmp_path / "there", 2 * EVERY)
    taken_back(smaller, tmp_path / "smaller", 2 * EVERY, **zero(2, offload=True))
    offloaded = taken_back(single, tmp_path / "offloaded", 2 * EVERY, fsdp=OFFLOAD)
    finished = taken_back(single, tmp_path / "finished", STEPS)
    resumed = (resized, switched, there, smaller, offloaded, finished)
    launch("several", *resumed, ranks=4)
    for folder in resumed:
        assert_same(folder, single)
    for folder in (resized, there, smaller):
        attempts = [row["attempt"] for row in rundir.read_lines(folder / rundir.METRICS)[0]]
        assert attempts == [1] * STEPS + [2] * (STEPS - EVERY) + [3] * (STEPS - 2 * EVERY)


@pytest.mark.slow
def test_engine_properties_on_two_ranks(root: Path) -> None:
    """`engine_checks` says what they are."""
    launch("engine_checks", run_of(root, "single", "pretrain") / rundir.CONFIG, "ddp", "fsdp", "deepspeed", ranks=2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_updates_without_dtensors(shards: Path, tmp_path: Path, ranks: int) -> None:
    """`update_checks` says what is compared."""
    launch("update_checks", write_run(small_config(shards), tmp_path) / rundir.CONFIG, ranks=ranks)


def test_replicas_must_divide_the_ranks(shards: Path) -> None:
    config = spread(small_config(shards), fsdp=FSDPConfig(replicas=3))
    with pytest.raises(UserError, match=r"fsdp\.replicas.*4 ranks"):
        build_engine(config, Rank(0, 4, 0, 1))
