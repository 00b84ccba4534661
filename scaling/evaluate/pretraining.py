"""The pretraining objective on images it was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from scaling.randomness import step_noise

if TYPE_CHECKING:
    from scaling.run import Run

MASK_SEED = 0
"""Masks are fixed by the sample's index alone, the same for every run and every seed."""


@torch.inference_mode()
def pretrain_loss(run: Run) -> dict[str, Any]:
    """Mean objective over the test split at the centre crop."""
    engine = run.engine
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)  # loss, images
    for batch in run.open_evaluation_stream():
        run.leave_if_asked()
        images, _ = run.inputs.plain(batch)
        noise = step_noise(MASK_SEED, "pretrain_loss", batch.samples, tokens=run.masked, depth=0)
        with engine.autocast():
            loss, _ = engine.objective(images, None, noise.to(engine.device))
        sums += torch.stack([loss.double() * len(images), loss.new_tensor(len(images)).double()])
    total, images_seen = engine.sum(sums).tolist()
    return {"protocol": "pretrain_loss", "loss": total / images_seen, "images": int(images_seen)}
