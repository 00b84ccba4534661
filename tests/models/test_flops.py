"""The closed forms against torch's counter, a counted scan, and the fact sheet's table."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.build import build_objective
from models.config import ARConfig, EncoderConfig, MAEConfig, ObjectiveConfig, SupervisedConfig
from models.flops import forward_macs, tokens_per_image, train_flops_per_image
from models.ladder import size_named
from models.noise import Noise
from tests.models.configs import ALL, name

BATCH = 2


@pytest.mark.parametrize(("encoder", "objective"), ALL, ids=name)
def test_products_equal_the_counter(encoder: EncoderConfig, objective: ObjectiveConfig) -> None:
    """Forward: equal. Forward and backward: three times that, less the gradient of the images, which nobody needs."""
    module = build_objective(encoder, objective)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.tensor([1, 2])
    noise = Noise(mask=torch.rand(BATCH, 64))
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            module(images, labels, noise)
        with FlopCounterMode(display=False) as both:
            module(images, labels, noise)[0].backward()
    macs = forward_macs(encoder, objective)
    assert forward.get_total_flops() == 2 * BATCH * macs.matmul
    unneeded = 2 * BATCH * macs.parts["patch_embedding"]
    assert both.get_total_flops() == BATCH * train_flops_per_image(encoder, objective)[0] - unneeded


class Counted:
    """A number that counts the operations done with it."""

    def __init__(self, value: float, operations: Counter[str]) -> None:
        self.value, self.operations = value, operations

    def _done(self, kind: str, value: float) -> Counted:
        self.operations[kind] += 1
        return Counted(value, self.operations)

    def __mul__(self, other: Counted) -> Counted:
        return self._done("multiply", self.value * other.value)

    def __add__(self, other: Counted) -> Counted:
        return self._done("add", self.value + other.value)

    def exp(self) -> Counted:
        return self._done("exp", math.exp(self.value))


def test_scan_against_a_counted_one() -> None:
    """8 operations a token, channel and state, counted.

    The convention's ninth leaves 16 a channel for the rest: bias and softplus (4), skip (2), gate (5).
    """
    length, channels, state = 5, 3, 16
    operations: Counter[str] = Counter()

    def number() -> Counted:
        return Counted(random.Random(0).random(), operations)

    for _ in range(channels):
        h = [number() for _ in range(state)]
        for _ in range(length):
            dt, x, y = number(), number(), number()
            for n in range(state):
                A, B, C = number(), number(), number()
                h[n] = (dt * A).exp() * h[n] + dt * B * x
                y = y + C * h[n]
    counted = sum(operations.values())
    assert counted == 8 * length * channels * state
    encoder = EncoderConfig(depth=1, width=channels, image_size=length, patch_size=1)
    closed = 2 * forward_macs(encoder, SupervisedConfig(classes=2)).scan / encoder.patches * length
    assert closed == counted + 16 * length * channels
    per_channel = 4 + 2 + 5
    assert abs(closed / (counted + per_channel * length * channels) - 1) < 0.04


@pytest.mark.parametrize(
    ("size", "gigamacs"),
    [
        ("base", (16.9, 15.8, 49.6, 10.3, 2.5)),
        ("large", (59.3, 55.8, 173.5, 36.3, 2.8)),
        ("huge", (131.6, 125.1, 385.6, 81.3, 3.3)),
    ],
)
def test_table_of_the_sheet(size: str, gigamacs: tuple[float, ...]) -> None:
    """Table 1.1: finetuning at 224 with four scans and one, at 384; pretraining encoder, decoder."""
    depth, width = size_named(size)

    def finetune(image_size: int, directions: int) -> float:
        encoder = EncoderConfig(
            depth=depth, width=width, image_size=image_size, scan_directions=directions, class_token=True
        )
        return forward_macs(encoder, SupervisedConfig()).total / 1e9

    pretraining = forward_macs(EncoderConfig(depth=depth, width=width, image_size=192), ARConfig())
    decoder = pretraining.parts["decoder"] / 1e9
    found = (finetune(224, 4), finetune(224, 1), finetune(384, 4), pretraining.total / 1e9 - decoder, decoder)
    assert tuple(round(value, 1) for value in found) == gigamacs


def test_tokens() -> None:
    encoder = EncoderConfig(image_size=192)
    assert tokens_per_image(encoder, ARConfig()) == 128
    assert tokens_per_image(EncoderConfig(image_size=224), MAEConfig()) == 49
    assert tokens_per_image(EncoderConfig(image_size=224, class_token=True), SupervisedConfig()) == 197


def test_mae_vit_base_agrees_with_the_published_cost() -> None:
    """Sheet 6: 4.4 G for the encoder and 5.4 G for the decoder, each with a class token, which ours has not."""
    macs = forward_macs(EncoderConfig(encoder="vit", image_size=224), MAEConfig())
    assert macs.parts["decoder"] / 1e9 == pytest.approx(5.4, abs=0.1)
    assert (macs.total - macs.parts["decoder"]) / 1e9 == pytest.approx(4.4, abs=0.1)
