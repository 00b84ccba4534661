"""Which parameters decay and which layer they belong to, for AdamW's groups (sheet, sections 2 and 3)."""

from __future__ import annotations

from torch import Tensor

from models.initialize import READOUT_POWERS, canonical


def layer_of(name: str, depth: int) -> int:
    """Layer id for layer-wise learning-rate decay: 0 the embedding, i + 1 block i, depth + 1 all that comes after."""
    name = canonical(name)
    if name.startswith("encoder.embedding."):
        return 0
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1


def decays(name: str, parameter: Tensor, stage: str = "pretrain") -> bool:
    """Whether AdamW decays a parameter, as in the official code.

    1-D tensors never do: norms, biases, and D and the time step's bias, which are 1-D for four directions too.
    Positions and class token do not outside pretraining. A_log does.
    """
    if parameter.dim() <= 1:
        return False
    positional = canonical(name) in ("encoder.embedding.pos_embed", "encoder.embedding.cls_token")
    return stage == "pretrain" or not positional


def reads_width(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix whose inputs grow with the width of the encoder.

    Of a block all matrices but A_log and the convolution's taps, and of the rest the readouts. The patch embedding,
    positions, vectors and the inside of decoders read a fixed number of inputs.
    """
    name = canonical(name)
    inside = name.startswith("encoder.blocks.") and not name.endswith((".scan.A_log", ".conv.weight"))
    return parameter.dim() == 2 and (inside or name in READOUT_POWERS)
