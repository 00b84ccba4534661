"""A child starts from its parent's weights, and re-drawing them is noticed."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import models
from models.build import build_objective
from models.weights import WEIGHTS, write_module
from scaling import rundir
from scaling.execute import execute
from scaling.reading import load_run
from tests.scaling.runs import BATCH, small_config, write_run

RESTING = 1e-12
"""A learning rate at which one step leaves the weights as they were."""


def carried_out(config: object, root: Path) -> Path:
    folder = write_run(config, root)  # type: ignore[arg-type]
    execute(load_run(folder / rundir.CONFIG), folder)
    return folder


def child_of(parent: Path, shards: Path, seed: int, **changes: object) -> Path:
    """A finetuning of `parent` beside it that rests, so that its weights are what it was given."""
    plain = {"mixup": 0.0, "cutmix": 0.0, "randaugment": "", "ema": 0.0, "images": BATCH, "lr": RESTING, "min_lr": 0.0}
    config = small_config(shards, "finetune", parent=parent.name, seed=seed, **plain | changes)
    return carried_out(config, parent.parents[1])


def distance(child: Path, parent: Path) -> float:
    """The largest difference of any weight of the blocks, each scan direction of the child against the parent's one."""
    ours, theirs = load_file(child / WEIGHTS), load_file(parent / WEIGHTS)
    found = 0.0
    for name, tensor in theirs.items():
        if name.startswith("encoder.blocks."):
            parts = ours[name].chunk(len(ours[name]) // len(tensor))
            found = max(found, *((part - tensor).abs().max().item() for part in parts))
    return found


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A pretraining of a few steps."""
    return carried_out(small_config(shards, images=8 * BATCH, lr=3e-3), tmp_path_factory.mktemp("transferred"))


@pytest.fixture(scope="module")
def redrawn(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the parent in a study of its own, its weights drawn anew."""
    copy = tmp_path_factory.mktemp("redrawn") / parent.parent.name / parent.name
    shutil.copytree(parent, copy)
    module = models.load(parent)
    write_module(
        build_objective(module.encoder.config, module.config, seed=9).get_submodule("module"),  # type: ignore[arg-type, union-attr]
        copy / WEIGHTS,
        "native",
    )
    return copy


def test_children_start_where_their_parent_ended(parent: Path, shards: Path) -> None:
    assert distance(child_of(parent, shards, seed=1), parent) < 1e-9


def test_redrawn_weights_are_noticed(parent: Path, redrawn: Path, shards: Path) -> None:
    """The same check, on a child whose parent's weights were re-drawn under it."""
    assert distance(child_of(redrawn, shards, seed=1), parent) > 0.1


def test_features_survive_the_transfer(parent: Path, shards: Path) -> None:
    """One scan direction, no class token, the same positions: the child's encoder is the parent's."""
    module = models.load(parent)
    child = models.load(child_of(parent, shards, seed=2, scan_directions=1, class_token=False))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (theirs,) = module.encoder(module.encoder.embedding(images))  # type: ignore[operator, union-attr]
    (ours,) = child.encoder(child.encoder.embedding(images))  # type: ignore[operator, union-attr]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
