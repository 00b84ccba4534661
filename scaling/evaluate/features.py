"""Frozen features of a whole split: what k-NN and the linear probe read."""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.evaluate.subject import Subject


@torch.inference_mode()
def features(subject: Subject, split: str) -> tuple[Tensor, Tensor]:
    """(images of this rank, width) float32 and their labels; extracted once for all evaluators of a subject.

    A pretrained module gives the mean over all patches of its last block's output after its last norm, in the order of
    pretraining; a classifier what its head reads. Centre crops, no augmentation.
    """
    if split not in subject.features:
        subject.features[split] = _extracted(subject, split)
    return subject.features[split]


def _extracted(subject: Subject, split: str) -> tuple[Tensor, Tensor]:
    rows, labels = [], []
    for batch in subject.batches(split):
        with subject.autocast():
            rows.append(subject.module.features(batch.images).float())  # type: ignore[operator]
        labels.append(batch.labels)
    if not rows:
        width = subject.module.encoder.config.width  # type: ignore[union-attr]
        return torch.zeros(0, width, device=subject.device), torch.zeros(0, dtype=torch.int64, device=subject.device)  # type: ignore[arg-type]
    return torch.cat(rows), torch.cat(labels)
