"""Top-1 and top-5 of a classifier, exact for any number of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from scaling.run import Run


@torch.inference_mode()
def classify(run: Run) -> dict[str, Any]:
    """Accuracy and cross-entropy over the test split: every image counts once, none is padded or repeated."""
    engine = run.engine
    sums = torch.zeros(4, dtype=torch.float64, device=engine.device)  # top1, top5, loss, images
    for batch in run.open_evaluation_stream():
        run.leave_if_asked()
        images, labels = run.inputs.plain(batch)
        with engine.autocast():
            logits = engine.module(images).float()
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([top[:, 0].sum(), top.sum(), loss, loss.new_tensor(len(labels))]).double()
    top1, top5, loss_sum, images_seen = engine.sum(sums).tolist()
    return {
        "protocol": "finetune",
        "top1": top1 / images_seen,
        "top5": top5 / images_seen,
        "loss": loss_sum / images_seen,
        "images": int(images_seen),
    }
