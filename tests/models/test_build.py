"""The ladder, parameter counts, and refusals of what cannot be built."""

from __future__ import annotations

import dataclasses

import pytest

from models.build import build_objective, count_parameters, parameter_counts
from models.config import ARConfig, EncoderConfig, MAEConfig, ObjectiveConfig, SupervisedConfig
from models.ladder import SIZES, size_named
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
    assert parameter_counts(EncoderConfig(depth=depth, width=width, image_size=192), ARConfig()) == pretraining
    for image_size, total in zip((224, 384), finetuning, strict=True):
        encoder_config = EncoderConfig(
            depth=depth, width=width, image_size=image_size, scan_directions=4, positions="learned", class_token=True
        )
        assert parameter_counts(encoder_config, SupervisedConfig())[:2] == (total, total)


@pytest.mark.parametrize(("config", "objective"), ALL, ids=name)
def test_counts_on_meta_are_those_in_memory(config: EncoderConfig, objective: ObjectiveConfig) -> None:
    assert parameter_counts(config, objective) == count_parameters(build_objective(config, objective))


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
