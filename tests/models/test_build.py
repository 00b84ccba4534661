"""The ladder, parameter counts, and refusals of what cannot be built."""

from __future__ import annotations

import dataclasses

import pytest

from models.build import build_objective, build_on_meta
from models.config import ARConfig, EncoderConfig, MAEConfig, ObjectiveConfig, SupervisedConfig
from models.ladder import SIZES, size_named
from models.parallel import blocks_of
from models.parameters import parameters
from scaling.errors import UserError
from tests.models.configs import ALL, AR, LABELLED, MASKED, encoder, name


@pytest.mark.parametrize(
    ("size", "pretraining", "finetuning"),
    [
        ("base", (99_427_328, 99_243_008, 79_934_208), (85_031_656, 85_323_496)),
        ("large", (303_942_880, 303_721_696, 282_313_696), (297_035_720, 297_424_840)),
        ("huge", (659_422_976, 659_128_064, 633_521_664), (662_682_088, 663_265_768)),
    ],
)
def test_counts_of_the_paper(size: str, pretraining: tuple[int, int, int], finetuning: tuple[int, int]) -> None:
    """Table 1.1 of the sheet: pretraining (total, trainable, encoder); finetuning at 224 and 384."""
    depth, width = size_named(size)
    found = parameters(EncoderConfig(depth=depth, width=width, image_size=192), ARConfig())
    assert (found.total, found.trained, found.encoder) == pretraining
    for image_size, total in zip((224, 384), finetuning, strict=True):
        encoder_config = EncoderConfig(
            depth=depth, width=width, image_size=image_size, scan_directions=4, positions="learned", class_token=True
        )
        found = parameters(encoder_config, SupervisedConfig())
        assert found.total == found.trained == total


@pytest.mark.parametrize(("config", "objective"), ALL, ids=name)
def test_counts_in_closed_form_are_those_of_the_module(config: EncoderConfig, objective: ObjectiveConfig) -> None:
    module, found = build_on_meta(config, objective), parameters(config, objective)
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    fixed = sum(table.numel() for name, table in module.named_buffers() if name.endswith("pos_embed"))
    blocks = sum(count for name, count in sizes.items() if "encoder.blocks." in name)
    patch = sum(count for name, count in sizes.items() if "encoder.embedding.patch." in name)
    every = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks_of(module)]
    assert (found.trained, found.total) == (sum(sizes.values()), sum(sizes.values()) + fixed)
    assert (found.patch, found.encoder_blocks, found.encoder) == (patch, blocks, patch + blocks)
    assert (found.largest_block, found.outside) == (max(every), found.trained - sum(every))


def test_taps() -> None:
    """depth * (3 + k) / 6 (design: ladder); the same span for other decoder depths."""
    assert ARConfig().taps(12) == (6, 8, 10, 12)
    assert ARConfig().taps(24) == (12, 16, 20, 24)
    assert ARConfig().taps(6) == (3, 4, 5, 6)
    assert ARConfig(decoder_depth=1).taps(12) == (12,)
    assert ARConfig(decoder_depth=8).taps(12)[::7] == (6, 12)


def test_unknown_size_lists_the_ladder() -> None:
    with pytest.raises(UserError, match=r"gigantic.*pico.*huge"):
        size_named("gigantic")
    assert list(SIZES) == ["pico", "nano", "micro", "tiny", "small", "base", "large", "huge"]


@pytest.mark.parametrize(
    ("config", "objective", "field", "valid"),
    [
        (encoder(image_size=30), AR, "image_size", "multiple of patch_size = 4"),
        (encoder("lstm"), AR, "encoder", "mamba, vit"),
        (encoder(width=30), AR, "width", "multiple of 4"),
        (encoder(depth=0), AR, "depth", "from 1 up"),
        (encoder(depth=1), AR, "depth", "2 or more"),
        (encoder(scan_directions=2), LABELLED, "scan_directions", "1, 4"),
        (encoder("vit", scan_directions=4), LABELLED, "scan_directions", "1"),
        (encoder(scan_directions=4), AR, "scan_directions", "1"),
        (encoder(positions="rope"), AR, "positions", "sincos, learned"),
        (encoder(drop_path=1.0), LABELLED, "drop_path", "below 1"),
        (encoder(class_token=True), MASKED, "class_token", "False"),
        (encoder(), dataclasses.replace(AR, cluster_side=3), "cluster_side", "1, 2, 4"),
        (encoder(), dataclasses.replace(AR, cluster_side=8), "cluster_side", "1, 2, 4"),
        (encoder(), dataclasses.replace(AR, order="diagonal"), "order", "row, column, random"),
        (encoder(), dataclasses.replace(AR, target="tokens"), "target", "normalized, raw"),
        (encoder(), dataclasses.replace(AR, order="random", order_seed=2**70), "order_seed", "64 bits"),
        (encoder(patch_size=1, channels=1), AR, "target", "raw"),
        (encoder(), dataclasses.replace(AR, decoder_width=200), "decoder_width", "multiple of 3"),
        (encoder(), dataclasses.replace(MASKED, mask_ratio=0.999), "mask_ratio", "visible"),
        (encoder(), MAEConfig(decoder_width=40), "decoder_width", "multiple of 16"),
        (encoder(), SupervisedConfig(pooling="class_token"), "pooling", "mean"),
        (encoder(), SupervisedConfig(pooling="max"), "pooling", "mean, class_token"),
    ],
)
def test_refusals(config: EncoderConfig, objective: ObjectiveConfig, field: str, valid: str) -> None:
    with pytest.raises(UserError) as caught:
        build_objective(config, objective)
    assert caught.value.field == field
    assert valid in caught.value.valid
