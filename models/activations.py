"""Bytes that a forward pass keeps for its backward, in closed form like the operations of models.flops; no torch here.

Counted is what autograd saves, each storage once, in eager execution: under bf16 autocast the inputs of matrix products
are bf16 beside an fp32 residual stream, and every weight of a product is kept once more as bf16. A compiled step keeps
less, so these numbers are an upper bound for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.config import MLP_RATIO, STATE, ARConfig, EncoderConfig, MAEConfig, ObjectiveConfig, SupervisedConfig
from models.flops import tokens_per_image

FP32, BF16, INT64 = 4, 2, 8
TRITON_INTERVAL = 4
"""Tokens between two states that the triton scan keeps; the others keep one every ceil(sqrt(length))."""


@dataclass(frozen=True)
class Kept:
    """Of one block, or of the parts around the blocks: bytes an image, bytes whatever the batch (bf16 weights, masks),
    the temporaries of the backward an image, and the residual stream that enters: all that checkpointing keeps."""

    image: int
    copies: int = 0
    working: int = 0
    stream: int = 0


@dataclass(frozen=True)
class Activations:
    """What each block of the encoder keeps, each block of a decoder (and how many there are), and everything else."""

    block: Kept
    decoder_block: Kept
    decoder_blocks: int
    rest: Kept


def activations(
    encoder: EncoderConfig, objective: ObjectiveConfig, *, bf16: bool, interval: int | None = None
) -> Activations:
    """`interval` is the number of tokens between the states that the scan keeps (None: ceil(sqrt(length)), and the
    temporaries of the scan in PyTorch)."""
    e = BF16 if bf16 else FP32
    length, width = tokens_per_image(encoder, objective), encoder.width
    mamba = encoder.encoder == "mamba"
    masked, own_order = isinstance(objective, ARConfig), isinstance(objective, MAEConfig)
    block = (
        _mamba_block(encoder, length, interval, e, own_order=own_order)
        if mamba
        else _vit_block(width, length, encoder.heads, e, masked=masked)
    )
    decoder_block, count = Kept(0), 0
    if isinstance(objective, ARConfig):
        decoder_block, count = _cross_block(objective.decoder_width, length, e), objective.decoder_depth
        rest = _around_ar(encoder, objective, length, e)
    elif isinstance(objective, MAEConfig):
        count = objective.decoder_depth
        decoder_block = _vit_block(objective.decoder_width, encoder.patches, objective.decoder_heads, e)
        rest = _around_mae(encoder, objective, length, e)
    else:
        assert isinstance(objective, SupervisedConfig)
        logits = 2 * FP32 * objective.classes
        rest = Kept(_norm(length, width) + e * width + logits, _copy(width * objective.classes, e))
    patches = e * encoder.patches * encoder.patch_values
    return Activations(block, decoder_block, count, Kept(rest.image + patches, rest.copies))


def _root(length: int) -> int:
    return next(root for root in range(1, length + 1) if root * root >= length)


def _norm(length: int, width: int) -> int:
    """A layer norm's input in fp32, its means and deviations."""
    return FP32 * length * (width + 2)


def _copy(weights: int, e: int) -> int:
    """Of a product's weights, as autocast makes it."""
    return BF16 * weights if e == BF16 else 0


def _mamba_block(encoder: EncoderConfig, length: int, interval: int | None, e: int, *, own_order: bool) -> Kept:
    """Of models.mamba.MambaBlock; with `own_order` every sample has its own order of several directions, as in MAE."""
    width, directions, rank, hidden = encoder.width, encoder.scan_directions, encoder.dt_rank, encoder.hidden
    tokens = length * width
    packed = directions * tokens
    # Into and out of the projection in, the convolution's and dt's outputs, the low-rank projections, into the one out.
    mixer = e * (tokens + 2 * tokens + 2 * packed + directions * length * (rank + 2 * STATE) + tokens)
    mixer += FP32 * -(-length // (interval or _root(length))) * directions * width * STATE
    if directions == 1 and interval:
        mixer += e * tokens  # the triton scan's output before the gate
    if directions > 1:  # the mean over directions and the gate, which one direction leaves to the scan
        mixer += 2 * e * tokens
    if directions > 1 and own_order:  # tokens laid out for the convolution, the scan's output, and the way back
        mixer += 2 * e * packed + INT64 * directions * length
    casts = 2 if e == BF16 else 1  # the SwiGLU multiplies its input twice, and autocast makes a copy for each
    mlp = e * (casts * tokens + 4 * length * hidden)
    weights = 3 * width * width + directions * width * (2 * rank + 2 * STATE) + 3 * width * hidden
    # The scan's own: in PyTorch fp32 copies of inputs and gradients; in a kernel gradients, and sums of dB and dC.
    scan = FP32 * 14 * packed if interval is None else (5 * e + FP32) * packed
    return Kept(
        image=mixer + mlp + 2 * _norm(length, width),
        copies=_copy(weights, e) + 2 * FP32 * directions * width * STATE,  # A, and the exponential of its logarithm
        working=max(5 * e * length * hidden, scan),
        stream=FP32 * tokens,
    )


def _mask(length: int, e: int) -> int:
    """A boolean attention mask as the numbers that attention adds, made by each block."""
    return e * length * length


def _vit_block(width: int, length: int, heads: int, e: int, *, masked: bool = False) -> Kept:
    """Of models.vit.ViTBlock."""
    tokens = length * width
    attention, mlp = e * 5 * tokens + FP32 * length * heads, e * (1 + 2 * MLP_RATIO) * tokens
    copies = _copy((4 + 2 * MLP_RATIO) * width * width, e) + masked * _mask(length, e)
    return Kept(attention + mlp + 2 * _norm(length, width), copies, mlp, FP32 * tokens)


def _cross_block(width: int, length: int, e: int) -> Kept:
    """Of models.arm.CrossBlock; the memory that it reads is the projection's output, counted once for all."""
    tokens = length * width
    products = e * (6 + 1 + 2 * MLP_RATIO) * tokens
    copies = _copy((4 + 2 * MLP_RATIO) * width * width, e) + _mask(length, e)
    image = products + 3 * _norm(length, width) - FP32 * tokens
    return Kept(image, copies, e * (1 + 2 * MLP_RATIO) * tokens, FP32 * tokens)


def _around_ar(encoder: EncoderConfig, config: ARConfig, length: int, e: int) -> Kept:
    width, levels = config.decoder_width, config.decoder_depth
    into = e * length * levels * (encoder.width + width) + _norm(length, encoder.width)
    after = _norm(length, width) + e * length * width + FP32 * length * encoder.patch_values
    weights = levels * encoder.width * levels * width + width * encoder.patch_values
    return Kept(into + after, _copy(weights, e))


def _around_mae(encoder: EncoderConfig, config: MAEConfig, visible: int, e: int) -> Kept:
    width, length = config.decoder_width, encoder.patches
    into = e * visible * encoder.width + FP32 * length * encoder.width + _norm(visible, encoder.width)
    after = _norm(length, width) + e * length * width + FP32 * length * encoder.patch_values
    return Kept(into + after, _copy(encoder.width * width + width * encoder.patch_values, e))
