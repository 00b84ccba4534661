"""Small configs that several tests build."""

from __future__ import annotations

from models.config import ARConfig, EncoderConfig, MAEConfig, ObjectiveConfig, SupervisedConfig

AR = ARConfig(cluster_side=2, decoder_depth=4, decoder_width=32)
MASKED = MAEConfig(decoder_depth=2, decoder_width=32, decoder_heads=2)
LABELLED = SupervisedConfig(classes=10)


def encoder(kind: str = "mamba", **fields: object) -> EncoderConfig:
    """A 6 x 32 encoder of 32-pixel images in 4-pixel patches, with `fields` changed."""
    return EncoderConfig(**{"encoder": kind, "depth": 6, "width": 32, "image_size": 32, "patch_size": 4} | fields)  # type: ignore[arg-type]


ALL: list[tuple[EncoderConfig, ObjectiveConfig]] = [
    (encoder("mamba"), AR),
    (encoder("vit"), AR),
    (encoder("mamba"), MASKED),
    (encoder("mamba", scan_directions=4), MASKED),
    (encoder("vit"), MASKED),
    (encoder("mamba"), LABELLED),
    (encoder("mamba", scan_directions=4, class_token=True, positions="learned"), LABELLED),
    (encoder("vit", class_token=True, positions="learned"), SupervisedConfig(classes=10, pooling="class_token")),
]
"""Every objective on every encoder, with one and four scan directions."""


def name(value: object) -> str:
    """A readable test id."""
    if isinstance(value, EncoderConfig):
        return f"{value.encoder}{value.scan_directions}"
    return type(value).__name__.removesuffix("Config")
