"""Counting right answers, so that several ranks' counts add up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def counts(logits: Tensor, labels: Tensor) -> Tensor:
    """(4,) float64 of logits (batch, classes): right at first, right among five, summed cross-entropy, images."""
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([top[:, 0].sum(), top.sum(), loss, loss.new_tensor(len(labels))]).double()


def accuracies(sums: Tensor) -> dict[str, Any]:
    """The fractions and the mean loss that `counts` of all images together make."""
    top1, top5, loss, images = sums.tolist()
    return {"top1": top1 / images, "top5": top5 / images, "loss": loss / images, "images": int(images)}
