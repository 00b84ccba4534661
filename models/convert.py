"""Checkpoints of the official ARM code (github.com/OliverRensu/ARM) to our modules and back (sheet 1.8).

Every tensor of ours is a stack, along its first dimension, of official tensors of equal size: the four directions of a
mixer, the two halves of a SwiGLU, or a single one. So values survive to the bit, and gradients map in the same way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.arm import ARM
from models.build import build_on_meta
from models.classifier import Classifier
from models.config import ARConfig, EncoderConfig, ObjectiveConfig, SupervisedConfig
from models.tables import make_tables
from scaling.errors import UserError

DIRECTIONS = ("", "_b", "_c", "_c_b")
"""Official suffixes of rows forward, rows reversed, columns forward, columns reversed."""

BLOCK = {
    "mixer.conv.weight": "mixer.conv1d{}.weight",
    "mixer.conv.bias": "mixer.conv1d{}.bias",
    "mixer.x_proj.weight": "mixer.x_proj{}.weight",
    "mixer.dt_proj.weight": "mixer.dt_proj{}.weight",
    "mixer.scan.dt_bias": "mixer.dt_proj{}.bias",
    "mixer.scan.A_log": "mixer.A{}_log",
    "mixer.scan.D": "mixer.D{}",
}
"""Packed parameters of a block; {} is the direction's suffix. The others keep their names."""

OUTSIDE = {
    "encoder.embedding.patch": "patch_embed.proj",
    "encoder.embedding.pos_embed": "pos_embed",
    "encoder.embedding.cls_token": "cls_token",
    "decoder.pos_embed": "dec_pos_embed",
    "decoder.token": "ar_token",
    "decoder.from_encoder": "enc2dec",
    "decoder.norm": "ar_norm",
    "decoder.head": "ar_pred",
    "norm": "norm_f",
    "head": "head",
}
"""Modules and tensors outside the blocks."""

DECODER_BLOCK = {
    "attention": "attn2",
    "norm_query": "norm2_1",
    "norm_memory": "norm2_2",
    "norm_mlp": "norm2",
    "mlp": "mlp",
}

DIMENSIONS = {"patch_embed.proj.weight": 4, "pos_embed": 3, "ar_token": 3, "head.weight": 2}
"""Of the official tensors whose shapes say what the model is."""

MASK = "mask"
"""The official decoder's additive attention mask, a buffer that follows from the config."""


def official_names(name: str, directions: int) -> list[str]:
    """The official tensors that our tensor `name` stacks, in order."""
    parts = name.split(".")
    if name.startswith("encoder.blocks."):
        layer, rest = f"layers.{parts[2]}", ".".join(parts[3:])
        if rest in BLOCK:
            return [f"{layer}.{BLOCK[rest].format(suffix)}" for suffix in DIRECTIONS[:directions]]
        if rest.startswith("mlp.w12."):
            return [f"{layer}.mlp.{half}.{parts[-1]}" for half in ("w1", "w2")]
        return [f"{layer}.{rest}"]
    if name.startswith("decoder.blocks."):
        return [".".join(["dec_block", parts[2], DECODER_BLOCK[parts[3]], *parts[4:]])]
    if name.startswith("decoder.norms."):
        return [f"norm_{int(parts[2]) + 1}.{parts[3]}"]
    if name in OUTSIDE:
        return [OUTSIDE[name]]
    return [f"{OUTSIDE[name.rpartition('.')[0]]}.{parts[-1]}"]


def configs_of(state: dict[str, Tensor]) -> tuple[EncoderConfig, ObjectiveConfig]:
    """What an official state dict was built from. Cluster side, taps and pooling are not in it: the paper's."""
    if (
        "patch_embed.proj.weight" not in state
        or "pos_embed" not in state
        or not {"ar_token", "head.weight"} & set(state)
    ):
        raise UserError("state_dict", f"{len(state)} tensors", "an ARM pretraining or finetuning checkpoint")
    for name, dimensions in DIMENSIONS.items():
        if name in state and state[name].dim() != dimensions:
            raise UserError(name, tuple(state[name].shape), f"a shape of {dimensions} dimensions")
    width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    finetuned = "head.weight" in state
    patches = state["pos_embed"].shape[1] - finetuned
    encoder = EncoderConfig(
        depth=sum(name.startswith("layers.") and name.endswith(".norm1.weight") for name in state),
        width=width,
        image_size=math.isqrt(patches) * patch_size,
        patch_size=patch_size,
        channels=channels,
        scan_directions=4 if finetuned else 1,
        positions="learned" if finetuned else "sincos",
        class_token=finetuned,
    )
    if finetuned:
        return encoder, SupervisedConfig(classes=state["head.weight"].shape[0])
    return encoder, ARConfig(decoder_width=state["ar_token"].shape[2])


def from_official(state_dict: dict[str, Tensor]) -> nn.Module:
    """An ARM or a Classifier with the values of an official pretraining or finetuning state dict, of any size.

    The buffer `mask` may be absent. Meta tensors give a meta module. Raises UserError for a tensor that is missing,
    does not belong, has another shape, or holds integers.
    """
    state = {name: tensor for name, tensor in state_dict.items() if name != MASK}
    encoder, objective = configs_of(state)
    module = build_on_meta(encoder, objective).module
    make_tables(module, state["pos_embed"].device)
    ours = {}
    for name, expected in module.state_dict().items():
        names = official_names(name, encoder.scan_directions)
        missing = [official for official in names if official not in state]
        if missing:
            raise UserError("state_dict", f"{len(state_dict)} tensors", "an ARM checkpoint", why=f"no {missing[0]}")
        shape = (expected.shape[0] // len(names), *expected.shape[1:])
        if name.endswith("mixer.conv.weight"):
            shape = (shape[0], 1, *shape[1:])
        for official in names:
            if tuple(state[official].shape) != shape:
                raise UserError(official, tuple(state[official].shape), f"the shape {shape}")
            if not state[official].is_floating_point():
                raise UserError(official, state[official].dtype, "floating-point numbers")
        ours[name] = torch.cat([state.pop(official) for official in names]).reshape(expected.shape)
    if state:
        raise UserError("state_dict", min(state), "tensors of an ARM checkpoint", why=f"{len(state)} do not belong")
    module.load_state_dict(ours, assign=True)
    return module


def to_official(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the official state dict, `mask` included, under its name and in its shape.

    Raises UserError for a model that the official code does not have, or that its files do not describe.
    """
    directions = _require_official(module).scan_directions
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        names = official_names(name, directions)
        for official, part in zip(names, tensor.chunk(len(names)), strict=True):
            state[official] = part.unsqueeze(1).clone() if name.endswith("mixer.conv.weight") else part.clone()
    if isinstance(module, ARM):
        seen = module.get_buffer("mask")
        state[MASK] = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)
    return state


def _require_official(module: nn.Module) -> EncoderConfig:
    """The encoder's config; UserError unless `module` is an ARM or a classifier that the official code builds."""
    valid = "an ARM with the paper's clusters, order and decoder depth, or a four-scan classifier with a class token"
    if not isinstance(module, ARM | Classifier):
        raise UserError("model", type(module).__name__, valid)
    encoder, config = module.encoder.config, module.config
    found = (encoder.encoder, encoder.scan_directions, encoder.positions, encoder.class_token)
    if found != (("mamba", 1, "sincos", False) if isinstance(module, ARM) else ("mamba", 4, "learned", True)):
        raise UserError("encoder", encoder, valid)
    if isinstance(config, ARConfig) and config != ARConfig(decoder_width=config.decoder_width):
        raise UserError("objective", config, valid)
    if isinstance(config, SupervisedConfig) and config.pooling != "mean":
        raise UserError("pooling", config.pooling, "mean", why="an official file does not say how it is pooled")
    return encoder
