"""The closed form against what autograd saves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from models.activations import activations
from models.build import build_objective
from models.config import EncoderConfig, ObjectiveConfig
from models.noise import Noise
from tests.models.configs import ALL, name

BATCH = 3


def saved_bytes(encoder: EncoderConfig, objective: ObjectiveConfig, bf16: bool) -> int:
    """Of a forward pass, every storage once; weights and tables are there anyway."""
    module = build_objective(encoder, objective)
    images = torch.randn(BATCH, 3, encoder.image_size, encoder.image_size)
    noise = Noise(mask=torch.rand(BATCH, encoder.patches))
    saved: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        module(images, torch.zeros(BATCH, dtype=torch.int64), noise)
    standing = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    return sum(size for address, size in storages.items() if address not in standing)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("encoder", "objective"), ALL, ids=name)
def test_a_block_keeps_what_autograd_saves(encoder: EncoderConfig, objective: ObjectiveConfig, bf16: bool) -> None:
    """To the byte: what two more blocks of the encoder add."""
    few, many = (saved_bytes(dataclasses.replace(encoder, depth=depth), objective, bf16) for depth in (6, 8))
    block = activations(encoder, objective, bf16=bf16).block
    assert many - few == 2 * (BATCH * block.image + block.copies)
