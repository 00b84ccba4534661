"""The pretraining objective on images it was not trained on."""

from __future__ import annotations

from typing import Any

import torch

from models.mae import MAE
from scaling.config import EvaluatorConfig
from scaling.evaluate.subject import Subject
from scaling.randomness import step_noise

MASK_SEED = 0
"""Masks are fixed by the sample's index alone, the same for every run and every seed."""


@torch.inference_mode()
def pretrain_loss(subject: Subject, _options: EvaluatorConfig) -> dict[str, Any]:
    """Mean objective over the test split at the centre crop."""
    masked = subject.module.encoder.config.patches if isinstance(subject.module, MAE) else 0
    sums = torch.zeros(2, dtype=torch.float64, device=subject.device)  # loss, images
    for batch in subject.batches():
        noise = step_noise(MASK_SEED, "pretrain_loss", batch.samples, tokens=masked, depth=0)
        with subject.autocast():
            loss = subject.module(batch.images, noise.to(subject.device)).loss
        sums += torch.stack([loss.double() * len(batch.images), loss.new_tensor(len(batch.images)).double()])
    total, images = subject.sum(sums).tolist()
    return {"protocol": "pretrain_loss", "loss": total / images, "images": int(images)}
