"""Normalisation, mixup, cutmix and smoothing against their definitions, and at any split into micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from data.batch import cut_box, mix, normalize, smooth
from data.config import Augmentation
from scaling.errors import UserError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def example(count: int = 16, size: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=generator)
    return images, torch.randint(0, 5, (count,), generator=generator), torch.arange(count)


def test_normalize_flips_and_scales() -> None:
    pixels = torch.randint(0, 256, (4, 6, 7, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    flips = torch.tensor([True, False, False, True])
    found = normalize(pixels, MEAN, STD, flips=flips)
    assert found.is_contiguous()
    assert found.dtype == torch.float32
    for row in range(4):
        plain = pixels[row].flip(-1) if flips[row] else pixels[row]
        expected = (plain.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        torch.testing.assert_close(found[row].double(), expected, atol=1e-6, rtol=1e-6)


def test_smoothing() -> None:
    targets = smooth(torch.tensor([2, 0]), 4, 0.1)
    torch.testing.assert_close(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))


def test_mixup_is_a_convex_combination_within_groups() -> None:
    images, labels, positions = example()
    augmentation = Augmentation(mixup=0.8, mix_group=4)
    mixed, targets = mix(images.clone(), labels, positions, augmentation, 5, seed=3)
    for group in range(4):
        here = slice(4 * group, 4 * group + 4)
        own, other = images[here], images[here].flip(0)
        share = float(((mixed[here] - other) / (own - other)).median())
        assert 0 <= share <= 1
        torch.testing.assert_close(mixed[here], share * own + (1 - share) * other, atol=1e-5, rtol=1e-5)
        one_hot = torch.nn.functional.one_hot(labels[here], 5).float()
        torch.testing.assert_close(targets[here], share * one_hot + (1 - share) * one_hot.flip(0), atol=1e-4, rtol=0)


def test_cutmix_weights_labels_by_area() -> None:
    images, labels, positions = example(size=16)
    augmentation = Augmentation(cutmix=1.0, mix_group=8)
    mixed, targets = mix(images.clone(), labels, positions, augmentation, 5, seed=4)
    for group in range(2):
        here = slice(8 * group, 8 * group + 8)
        pasted = (mixed[here] != images[here]).any(1)
        assert torch.equal(pasted[0], pasted[3])  # one box a group
        torch.testing.assert_close(
            mixed[here], torch.where(pasted[:, None], images[here].flip(0), images[here]), atol=0, rtol=0
        )
        share = 1 - float(pasted[0].float().mean())
        one_hot = torch.nn.functional.one_hot(labels[here], 5).float()
        torch.testing.assert_close(targets[here], share * one_hot + (1 - share) * one_hot.flip(0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_sum_to_one(smoothing: float) -> None:
    images, labels, positions = example(64)
    augmentation = Augmentation(mixup=0.8, cutmix=1.0, label_smoothing=smoothing)
    _, targets = mix(images, labels, positions, augmentation, 5, seed=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    assert targets.min() >= smoothing / 5 - 1e-6


@pytest.mark.parametrize("micro", [16, 32])
def test_any_micro_batch_mixes_alike(micro: int) -> None:
    images, labels, positions = example(64)
    positions = positions + 128
    augmentation = Augmentation(mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    whole = mix(images.clone(), labels, positions, augmentation, 5, seed=7)
    parts = [
        mix(images[i : i + micro].clone(), labels[i : i + micro], positions[i : i + micro], augmentation, 5, seed=7)
        for i in range(0, 64, micro)
    ]
    assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
    assert torch.equal(torch.cat([part[1] for part in parts]), whole[1])


def test_shares_have_the_beta_distribution_and_kinds_are_even() -> None:
    images = torch.zeros(2 * 2000, 3, 1, 1)
    images[::2] = 1.0
    positions = torch.arange(4000)
    augmentation = Augmentation(mixup=0.8, mix_group=2)
    mixed, _ = mix(images.clone(), torch.zeros(4000, dtype=torch.int64), positions, augmentation, 2, seed=1)
    assert stats.kstest(mixed[::2, 0, 0, 0].numpy(), stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    both = Augmentation(mixup=0.8, cutmix=1.0, mix_group=2)
    labels = torch.tensor([0, 1]).repeat(2000)
    _, targets = mix(images.expand(-1, -1, 4, 4).clone(), labels, positions, both, 2, seed=1)
    cuts = np.isclose((targets[::2, 0].numpy() * 16) % 1, 0, atol=1e-5)  # a box of whole pixels
    assert 0.44 < cuts.mean() < 0.56


def test_cut_box_is_clipped_to_the_image() -> None:
    assert cut_box(8, 8, 0.75, 0.5, 0.5) == (2, 6, 2, 6)
    assert cut_box(8, 8, 0.75, 0.0, 0.99) == (0, 2, 5, 8)
    assert cut_box(8, 8, 1.0, 0.3, 0.3) == (2, 2, 2, 2)


def test_groups_must_divide_the_micro_batch() -> None:
    images, labels, positions = example(24)
    with pytest.raises(UserError, match="mix_group"):
        mix(images, labels, positions, Augmentation(mixup=0.8), 5, seed=0)
    with pytest.raises(UserError, match="mix_group"):
        mix(images[:16], labels[:16], positions[:16] + 8, Augmentation(mixup=0.8), 5, seed=0)
