"""Every strategy on every encoder learns from photographs: held-out loss below what a constant prediction reaches."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.build import build_objective
from models.config import ENCODERS, ARConfig, EncoderConfig, MAEConfig, ObjectiveConfig, SupervisedConfig
from models.groups import decays
from models.noise import Noise
from models.orders import cluster_order
from models.pixels import targets_of
from tests.conftest import SHARED, need

ARCHIVE = SHARED / "data" / "cifar10-jpeg.tar.xz"
TRAIN, HELD_OUT = 64, 16
STEPS, BATCH = 40, 64

STRATEGIES: dict[str, ObjectiveConfig] = {
    "ar": ARConfig(cluster_side=2, decoder_width=64),
    "mae": MAEConfig(decoder_depth=2, decoder_width=64, decoder_heads=4),
    "supervised": SupervisedConfig(classes=10),
}


class Photographs(NamedTuple):
    """Normalised images (samples, 3, 32, 32) and class indices (samples,)."""

    images: Tensor
    labels: Tensor


@pytest.fixture(scope="module")
def photographs() -> tuple[Photographs, Photographs]:
    """640 images to train on and 160 others, the ten classes evenly."""
    need("cifar10", ARCHIVE.is_file(), "the CIFAR-10 archive is not beside the checkout")
    by_class: dict[str, list[np.ndarray]] = defaultdict(list)
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            split, *rest = member.name.split("/")
            if split == "train":
                break
            if split == "test" and member.isfile() and len(by_class[rest[0]]) < TRAIN + HELD_OUT:
                file = archive.extractfile(member)
                assert file is not None
                by_class[rest[0]].append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
    assert len(by_class) == 10
    pixels = torch.tensor(np.stack([np.stack(images) for images in by_class.values()])).permute(0, 1, 4, 2, 3) / 255
    pixels = (pixels - pixels.mean((0, 1, 3, 4), keepdim=True)) / pixels.std((0, 1, 3, 4), keepdim=True)
    labels = torch.arange(10)[:, None].expand(-1, TRAIN + HELD_OUT)
    return (
        Photographs(pixels[:, :TRAIN].flatten(0, 1), labels[:, :TRAIN].flatten()),
        Photographs(pixels[:, TRAIN:].flatten(0, 1), labels[:, TRAIN:].flatten()),
    )


def trivial_loss(objective: ObjectiveConfig, train: Photographs, held_out: Photographs) -> float:
    """The best constant: uniform classes, or the mean training target of every predicted position."""
    if isinstance(objective, SupervisedConfig):
        return float(np.log(10))
    means, goals = (targets_of(part.images, 4, "normalized") for part in (train, held_out))
    errors = (goals - means.mean(0)).square().mean((0, 2))
    if isinstance(objective, ARConfig):
        return errors[cluster_order(8, 2, "row", 0)[4:]].mean().item()
    return errors.mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ENCODERS)
def test_learning(kind: str, strategy: str, photographs: tuple[Photographs, Photographs]) -> None:
    train, held_out = photographs
    objective = STRATEGIES[strategy]
    labelled = strategy == "supervised"
    encoder = EncoderConfig(kind, depth=6, width=64, image_size=32, patch_size=4)
    if labelled:
        encoder = dataclasses.replace(encoder, class_token=True, positions="learned")
    module = build_objective(encoder, objective)
    groups = [
        {"params": [p for n, p in module.named_parameters() if decays(n, p) == decay], "weight_decay": 0.05 * decay}
        for decay in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 2e-3 * min(1, (step + 1) / 10)
        picked = torch.randint(len(train.images), (BATCH,), generator=generator)
        noise = Noise(mask=torch.rand(BATCH, 64, generator=generator))
        loss, _ = module(train.images[picked], train.labels[picked], noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 3.0)
        optimizer.step()
    with torch.no_grad():
        noise = Noise(mask=torch.rand(len(held_out.images), 64, generator=generator))
        found, _ = module.eval()(held_out.images, held_out.labels, noise)
    assert found.item() < trivial_loss(objective, train, held_out) * 0.98
