"""From one stage to the next: a pretrained or finetuned encoder into a classifier (sheet 1.4, 1.5)."""

from __future__ import annotations

from torch import Tensor, nn

from models.encoder import Embedding
from models.initialize import canonical, write
from models.tables import resize_positions
from scaling.errors import UserError

PER_DIRECTION = (".mixer.conv.", ".mixer.x_proj.", ".mixer.dt_proj.", ".mixer.scan.")
"""Parameters packed along their first dimension, one part a scan direction."""

POSITIONS = "encoder.embedding.pos_embed"
OPTIONAL = ("encoder.embedding.cls_token", "norm.weight", "norm.bias")
"""What pretraining does not have: it keeps its initial values then. The decoder's norms are never taken for `norm`."""


def transfer(source_state: dict[str, Tensor], classifier: nn.Module, *, head: bool = False) -> list[str]:
    """Copies the encoder in `source_state` into `classifier` and returns the names that were copied.

    A single scan direction is copied into all four; learned positions are resized to the classifier's grid, with a zero
    row for a class token that the source has not; class token and norm come from a finetuned checkpoint alone. The head
    keeps its initial values, unless `head` says that a finetuned source knows the same classes. Raises UserError where
    a weight is missing or its shape differs, before any is changed.
    """
    source = {canonical(name): tensor for name, tensor in source_state.items()}
    target = {canonical(name): parameter for name, parameter in classifier.named_parameters()}
    surplus = next((name for name in source if name.startswith("encoder.blocks.") and name not in target), None)
    if surplus is not None:
        raise UserError(
            "checkpoint", surplus, "an encoder of the same kind and depth", why="this one has no such weight"
        )
    copies = {}
    for name, parameter in target.items():
        if (name.startswith("head.") and not (head and name in source)) or (name in OPTIONAL and name not in source):
            continue
        if name not in source:
            raise UserError("checkpoint", "keys of another model", "the encoder of this config", why=f"no {name}")
        copies[name] = _fitted(name, source[name], parameter, classifier)
    for name, tensor in copies.items():
        write(target[name], tensor)
    return list(copies)


def _fitted(name: str, tensor: Tensor, parameter: Tensor, classifier: nn.Module) -> Tensor:
    """`tensor` brought to the parameter's shape."""
    if name == POSITIONS and tensor.shape[2] == parameter.shape[2]:
        config = next(module.config for module in classifier.modules() if isinstance(module, Embedding))
        tensor = resize_positions(tensor, config.side, config.class_token)
    elif any(part in name for part in PER_DIRECTION) and parameter.shape[0] == 4 * tensor.shape[0]:
        tensor = tensor.repeat(4, *[1] * (tensor.dim() - 1))
    if tensor.shape != parameter.shape:
        raise UserError("checkpoint", f"{name} of shape {tuple(tensor.shape)}", f"shape {tuple(parameter.shape)}")
    return tensor
