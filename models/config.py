"""What a model is, as plain data: encoder and objective. Imports no torch, so that plans and costs start at once."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.errors import UserError

ENCODERS = ("mamba", "vit")
STRATEGIES = ("ar", "mae", "supervised")
"""Objectives; the strategy `scratch` trains the supervised objective."""

ORDERS = ("row", "column", "random")
TARGETS = ("normalized", "raw")
POOLINGS = ("mean", "class_token")

STATE = 16
"""State size of the scan (sheet 1.2)."""
CONV_WIDTH = 4
"""Taps of the causal convolution before the scan (sheet 1.2)."""
MLP_RATIO = 4
"""Hidden width of a transformer's MLP over its width."""


@dataclass(frozen=True)
class EncoderConfig:
    """An isotropic encoder of `depth` blocks of `width` channels over square patches of a square image."""

    encoder: str = "mamba"
    depth: int = 12
    width: int = 768
    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    scan_directions: int = 1  # 1 or 4 (mamba)
    positions: str = "sincos"  # sincos (fixed) or learned
    class_token: bool = False  # in the middle of the sequence
    drop_path: float = 0.0  # rate at the end of the ramp of the sheet, section 3
    base_width: int | None = None  # width at which muP is the standard parametrisation; null: standard at every width

    @property
    def width_ratio(self) -> float:
        """By how much muP scales: width over base width; 1 in the standard parametrisation."""
        return 1.0 if self.base_width is None else self.width / self.base_width

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches an image."""
        return self.side**2

    @property
    def patch_values(self) -> int:
        """Numbers in one patch."""
        return self.patch_size**2 * self.channels

    @property
    def middle(self) -> int:
        """Index of the class token: half the patches stand before it (sheet 1.5)."""
        return self.patches // 2

    @property
    def dt_rank(self) -> int:
        """Rank of the time step's projection, ceil(width / 16) (sheet 1.2)."""
        return -(-self.width // 16)

    @property
    def hidden(self) -> int:
        """Hidden width of the SwiGLU, floor(8 width / 3) (sheet 1.2)."""
        return 8 * self.width // 3

    @property
    def heads(self) -> int:
        """Attention heads of the ViT."""
        return attention_heads(self.width)


@dataclass(frozen=True)
class ARConfig:
    """Autoregressive prediction of the next cluster (paper, section 3; sheet 1.7 and 2)."""

    cluster_side: int = 4  # patches a side
    order: str = "row"  # of the clusters: row, column or random (one fixed permutation); rows first inside a cluster
    order_seed: int = 0
    decoder_depth: int = 4
    decoder_width: int = 512
    target: str = "normalized"  # pixels normalised per patch, or raw

    def taps(self, depth: int) -> tuple[int, ...]:
        """Blocks after which the decoder reads an encoder of `depth`: evenly from its middle to its end.

        depth * (3 + k) / 6, rounded down, for the paper's four decoder blocks (sheet 1.7).
        """
        steps = self.decoder_depth - 1
        if steps == 0:
            return (depth,)
        return tuple(depth * (steps + k) // (2 * steps) for k in range(steps + 1))


@dataclass(frozen=True)
class MAEConfig:
    """Masked autoencoding of visible patches in raster order (He et al. 2022; sheet 6 and 7)."""

    mask_ratio: float = 0.75
    decoder_depth: int = 8
    decoder_width: int = 512
    decoder_heads: int = 16
    target: str = "normalized"

    def visible(self, patches: int) -> int:
        """Patches that the encoder reads."""
        return int(patches * (1 - self.mask_ratio))


@dataclass(frozen=True)
class SupervisedConfig:
    """Classification: mean over patch tokens, or the class token in the middle."""

    classes: int = 1000
    pooling: str = "mean"  # mean or class_token
    head_std: float = 0.02  # 2e-5 when a checkpoint is loaded (sheet 1.6)


ObjectiveConfig = ARConfig | MAEConfig | SupervisedConfig


def attention_heads(width: int) -> int:
    """Heads of 64 channels, at least one (sheet 1.8)."""
    return max(1, width // 64)


def check(encoder: EncoderConfig, objective: ObjectiveConfig) -> None:
    """Raises UserError for the first field that cannot be built."""
    _one_of("encoder", encoder.encoder, ENCODERS)
    _one_of("positions", encoder.positions, ("sincos", "learned"))
    _one_of("scan_directions", encoder.scan_directions, (1, 4))
    for name in ("depth", "width", "image_size", "patch_size", "channels"):
        _at_least(name, getattr(encoder, name), 1)
    _rate("drop_path", encoder.drop_path)
    if encoder.image_size % encoder.patch_size:
        raise UserError("image_size", encoder.image_size, f"a multiple of patch_size = {encoder.patch_size}")
    _multiple("width", encoder.width, 4, "a quarter of the channels is one part of the sin-cos table")
    if encoder.encoder == "vit":
        _multiple("width", encoder.width, encoder.heads, f"{encoder.heads} attention heads")
        if encoder.scan_directions != 1:
            raise UserError("scan_directions", encoder.scan_directions, "1", why="a ViT does not scan")
    if isinstance(objective, ARConfig):
        _check_ar(encoder, objective)
    elif isinstance(objective, MAEConfig):
        _check_mae(encoder, objective)
    else:
        _check_supervised(encoder, objective)


def _check_ar(encoder: EncoderConfig, objective: ARConfig) -> None:
    _one_of("order", objective.order, ORDERS)
    if not -(2**63) <= objective.order_seed < 2**64:
        raise UserError("order_seed", objective.order_seed, "a whole number of 64 bits")
    _check_decoder(encoder, objective, attention_heads(objective.decoder_width))
    if min(objective.taps(encoder.depth)) < 1:
        raise UserError("depth", encoder.depth, "2 or more, or ar.decoder_depth 1", why="the decoder reads its middle")
    _at_least("cluster_side", objective.cluster_side, 1)
    if encoder.side % objective.cluster_side or encoder.side == objective.cluster_side:
        valid = [side for side in range(1, encoder.side) if encoder.side % side == 0]
        raise UserError(
            "cluster_side", objective.cluster_side, valid, why=f"the image has {encoder.side} patches a side"
        )
    if encoder.scan_directions != 1:
        raise UserError("scan_directions", encoder.scan_directions, "1", why="a reversed scan sees what is predicted")


def _check_mae(encoder: EncoderConfig, objective: MAEConfig) -> None:
    _at_least("decoder_heads", objective.decoder_heads, 1)
    _check_decoder(encoder, objective, objective.decoder_heads)
    _rate("mask_ratio", objective.mask_ratio)
    if not 0 < objective.visible(encoder.patches) < encoder.patches:
        valid = f"a ratio that leaves from 1 to {encoder.patches - 1} of {encoder.patches} patches visible"
        raise UserError("mask_ratio", objective.mask_ratio, valid)


def _check_decoder(encoder: EncoderConfig, objective: ARConfig | MAEConfig, heads: int) -> None:
    _one_of("target", objective.target, TARGETS)
    if objective.target == "normalized" and encoder.patch_values == 1:
        raise UserError("target", objective.target, "raw", why="a patch of one value has no deviation")
    _at_least("decoder_depth", objective.decoder_depth, 1)
    _at_least("decoder_width", objective.decoder_width, 4)
    _multiple("decoder_width", objective.decoder_width, 4, "the sin-cos table")
    _multiple("decoder_width", objective.decoder_width, heads, f"{heads} attention heads")
    if encoder.class_token:
        raise UserError("class_token", True, "False", why="pretraining has no class token")


def _check_supervised(encoder: EncoderConfig, objective: SupervisedConfig) -> None:
    _at_least("classes", objective.classes, 1)
    _one_of("pooling", objective.pooling, POOLINGS)
    if objective.pooling == "class_token" and not encoder.class_token:
        raise UserError("pooling", objective.pooling, "mean", why="the encoder has no class token")


def _one_of(field: str, value: object, valid: tuple[object, ...]) -> None:
    if value not in valid:
        raise UserError(field, value, valid)


def _at_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(field, value, f"a whole number from {least} up")


def _multiple(field: str, value: int, of: int, why: str) -> None:
    if value % of:
        raise UserError(field, value, f"a multiple of {of}", why=why)


def _rate(field: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(field, value, "from 0 to below 1")
