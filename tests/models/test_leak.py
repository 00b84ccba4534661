"""Autoregression must not see what it predicts: bitwise, in both encoders and every order."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.arm import ARM
from models.build import build_objective
from models.config import ENCODERS, ORDERS
from tests.models.configs import AR, encoder


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ENCODERS)
def test_pixels_change_later_predictions_alone(kind: str, order: str) -> None:
    """Cluster k's pixels leave the predictions of clusters 0 .. k as they are, to the bit, and change k + 1."""
    config = dataclasses.replace(AR, order=order, order_seed=3)
    module = build_objective(encoder(kind), config, seed=1).get_submodule("module")
    assert isinstance(module, ARM)
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    sequence = module.get_buffer("sequence")
    cluster = config.cluster_side**2
    with torch.no_grad():
        before = module(images).prediction
        for k in range(16):
            changed = images.clone()
            for patch in sequence[k * cluster : (k + 1) * cluster].tolist():
                row, column = patch // 8 * 4, patch % 8 * 4
                changed[:, :, row : row + 4, column : column + 4] += torch.randn(2, 3, 4, 4)
            after = module(changed).prediction
            known = k * cluster  # predictions start at cluster 1
            assert torch.equal(before[:, :known], after[:, :known])
            if k < 15:
                assert (before[:, known : known + cluster] != after[:, known : known + cluster]).any(dim=2).all()
