"""Parameters in closed form, like the operations of models.flops and the bytes of models.activations. Imports no torch.

Fixed position tables count in `total`, as in the official code's number (sheet 1.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from models.config import (
    CONV_WIDTH,
    MLP_RATIO,
    STATE,
    ARConfig,
    EncoderConfig,
    ObjectiveConfig,
    SupervisedConfig,
    check,
)


@dataclass(frozen=True)
class Parameters:
    """Trained parameters by part of the objective, and the numbers of its fixed tables."""

    patch: int  # the embedding's projection
    block: int  # one of the encoder's
    depth: int
    decoder_block: int
    decoder_depth: int
    rest: int  # learned positions, tokens, norms, projections and head around the blocks
    tables: int

    @property
    def encoder(self) -> int:
        """The patch embedding and the blocks (sheet 1.1)."""
        return self.patch + self.encoder_blocks

    @property
    def encoder_blocks(self) -> int:
        return self.depth * self.block

    @property
    def outside(self) -> int:
        """What is in no block, of the encoder or a decoder."""
        return self.patch + self.rest

    @property
    def largest_block(self) -> int:
        return max(self.block, self.decoder_block)

    @property
    def trained(self) -> int:
        return self.outside + self.encoder_blocks + self.decoder_depth * self.decoder_block

    @property
    def total(self) -> int:
        return self.trained + self.tables


def parameters(encoder: EncoderConfig, objective: ObjectiveConfig) -> Parameters:
    """Those of what the configs describe; UserError for configs that cannot be built."""
    check(encoder, objective)
    width = encoder.width
    positions = (encoder.patches + encoder.class_token) * width
    learned = positions if encoder.positions == "learned" else 0
    rest, tables = learned + encoder.class_token * width, positions - learned
    decoder_block, decoder_depth = 0, 0
    if isinstance(objective, SupervisedConfig):
        rest += _norm(width) + _linear(width, objective.classes)
    else:
        inner, decoder_depth = objective.decoder_width, objective.decoder_depth
        levels = decoder_depth if isinstance(objective, ARConfig) else 1
        decoder_block = _cross_block(inner) if isinstance(objective, ARConfig) else _vit_block(inner)
        rest += levels * _norm(width) + _linear(levels * width, levels * inner)
        rest += inner + _norm(inner) + _linear(inner, encoder.patch_values)  # the token, and what follows the blocks
        tables += encoder.patches * inner
    return Parameters(
        patch=_linear(encoder.patch_values, width),
        block=_mamba_block(encoder) if encoder.encoder == "mamba" else _vit_block(width),
        depth=encoder.depth,
        decoder_block=decoder_block,
        decoder_depth=decoder_depth,
        rest=rest,
        tables=tables,
    )


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _norm(width: int) -> int:
    return 2 * width


def _mamba_block(encoder: EncoderConfig) -> int:
    width, rank, channels = encoder.width, encoder.dt_rank, encoder.scan_directions * encoder.width
    convolution = _linear(CONV_WIDTH, channels)
    low_rank = encoder.scan_directions * (rank + 2 * STATE) * width + channels * rank
    scan = channels * (STATE + 2)  # A, D and the bias of the time step
    mixer = width * 2 * width + convolution + low_rank + scan + width * width
    return 2 * _norm(width) + mixer + _linear(width, 2 * encoder.hidden) + _linear(encoder.hidden, width)


def _mlp(width: int) -> int:
    return _linear(width, MLP_RATIO * width) + _linear(MLP_RATIO * width, width)


def _vit_block(width: int) -> int:
    return 2 * _norm(width) + _linear(width, 3 * width) + _linear(width, width) + _mlp(width)


def _cross_block(width: int) -> int:
    attention = _linear(width, width) + _linear(width, 2 * width) + _linear(width, width)
    return 3 * _norm(width) + attention + _mlp(width)
