"""Multiply-accumulates (MACs) of one forward pass of one image, in closed form. Imports no torch.

Counted: every matrix product, attention's two products over all pairs (masked or not, as kernels compute them), the
scan and the depthwise convolution before it. Not counted: norms, activations, softmax, residual sums. A scan is 4.5
MACs a token, channel, state and direction, the convention of the sheet's table 1.1 (9 operations: 8 in the recurrence
and its output; the ninth stands for the work per channel, spread over the states). The convolution is a part of its
own, `conv`, and in neither `matmul` nor `scan`.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.config import (
    CONV_WIDTH,
    MLP_RATIO,
    STATE,
    ARConfig,
    EncoderConfig,
    MAEConfig,
    ObjectiveConfig,
    SupervisedConfig,
)

BACKWARD = 2
"""A backward pass costs twice its forward: one product for the inputs' gradient, one for the weights'."""


@dataclass(frozen=True)
class Macs:
    """MACs by part of the model."""

    parts: dict[str, int]

    @property
    def scan(self) -> int:
        """Of the selective scans."""
        return self.parts.get("scan", 0)

    @property
    def conv(self) -> int:
        """Of the depthwise convolutions before the scans."""
        return self.parts.get("conv", 0)

    @property
    def matmul(self) -> int:
        """Of all matrix products, the patch embedding among them."""
        return self.total - self.scan - self.conv

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def tokens_per_image(encoder: EncoderConfig, objective: ObjectiveConfig) -> int:
    """Tokens of one image that the encoder reads."""
    if isinstance(objective, ARConfig):
        return encoder.patches - objective.cluster_side**2
    if isinstance(objective, MAEConfig):
        return objective.visible(encoder.patches)
    return encoder.patches + encoder.class_token


def forward_macs(encoder: EncoderConfig, objective: ObjectiveConfig) -> Macs:
    """MACs of one image's forward pass. All patches are embedded, also those that the encoder then does not read."""
    length = tokens_per_image(encoder, objective)
    blocks = _mamba_block(encoder, length) if encoder.encoder == "mamba" else _vit_block(encoder, length)
    parts = {"patch_embedding": encoder.patches * encoder.patch_values * encoder.width}
    parts |= {name: encoder.depth * macs for name, macs in blocks.items()}
    if isinstance(objective, ARConfig):
        parts["decoder"] = _ar_decoder(encoder, objective, length)
    elif isinstance(objective, MAEConfig):
        parts["decoder"] = _mae_decoder(encoder, objective, length)
    else:
        assert isinstance(objective, SupervisedConfig)
        parts["head"] = encoder.width * objective.classes
    return Macs(parts)


def train_flops_per_image(encoder: EncoderConfig, objective: ObjectiveConfig) -> tuple[float, float]:
    """Operations (two a MAC) of one image's forward and backward pass: (matrix products, scans)."""
    macs = forward_macs(encoder, objective)
    return 2.0 * (1 + BACKWARD) * macs.matmul, 2.0 * (1 + BACKWARD) * macs.scan


def _mamba_block(encoder: EncoderConfig, length: int) -> dict[str, int]:
    width, rank, directions = encoder.width, encoder.dt_rank, encoder.scan_directions
    return {
        "in_projection": length * width * 2 * width,
        "conv": directions * length * width * CONV_WIDTH,
        "x_projection": directions * length * width * (rank + 2 * STATE),
        "dt_projection": directions * length * rank * width,
        "scan": directions * length * width * STATE * 9 // 2,
        "out_projection": length * width * width,
        "mlp": length * 3 * width * encoder.hidden,
    }


def _vit_block(encoder: EncoderConfig, length: int) -> dict[str, int]:
    width = encoder.width
    return {
        "attention_projections": length * 4 * width * width,
        "attention": 2 * length * length * width,
        "mlp": length * 2 * MLP_RATIO * width * width,
    }


def _ar_decoder(encoder: EncoderConfig, config: ARConfig, length: int) -> int:
    width, levels = config.decoder_width, config.decoder_depth
    from_encoder = length * (levels * encoder.width) * (levels * width)
    block = length * (4 + 2 * MLP_RATIO) * width * width + 2 * length * length * width
    return from_encoder + levels * block + length * width * encoder.patch_values


def _mae_decoder(encoder: EncoderConfig, config: MAEConfig, visible: int) -> int:
    width, length = config.decoder_width, encoder.patches
    block = length * (4 + 2 * MLP_RATIO) * width * width + 2 * length * length * width
    return visible * encoder.width * width + config.decoder_depth * block + length * width * encoder.patch_values
