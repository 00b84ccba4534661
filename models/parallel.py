"""Activation checkpointing, compilation and sharding of an objective, block by block and in that order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.arm import ARM, ARDecoder, CrossBlock
from models.encoder import Embedding
from models.mamba import MambaBlock
from models.vit import ViTBlock

BLOCKS = (MambaBlock, ViTBlock, CrossBlock)
PARTS = ((Embedding, "forward"), (ARDecoder, "memories"), (ARDecoder, "pixels"), (ARM, "errors"))
"""Methods of what is around the blocks that take noticeable time kernel by kernel."""


def blocks_of(objective: nn.Module) -> list[nn.Module]:
    """The repeated blocks of encoder and decoder, the units of checkpointing, compilation and sharding."""
    return [module for module in objective.modules() if isinstance(module, BLOCKS)]


def parallelize(
    objective: nn.Module,
    *,
    checkpointing: bool = False,
    compile: bool = False,
    shard: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Changes `objective` in place and returns it. `shard` is called on every block, then on the objective itself.

    A block's forward is replaced on the instance: parameter names stay, and hooks that an engine registers run around
    the compiled and checkpointed part. Recomputation needs no generator state, as no forward pass draws anything.
    """
    for block in blocks_of(objective):
        forward = block.forward
        if checkpointing:
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        if compile:
            forward = torch.compile(forward)
        if checkpointing or compile:
            block.forward = forward
    for module in objective.modules() if compile else ():
        for kind, method in PARTS:
            if isinstance(module, kind):
                setattr(module, method, torch.compile(getattr(module, method)))
    if shard is not None:
        for block in blocks_of(objective):
            shard(block)
        shard(objective)
    return objective
