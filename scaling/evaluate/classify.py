"""Top-1 and top-5 of a classifier, exact for any number of ranks."""

from __future__ import annotations

from typing import Any

import torch

from scaling.config import EvaluatorConfig
from scaling.evaluate.accuracy import accuracies
from scaling.evaluate.imagenet import test_set
from scaling.evaluate.subject import Subject


@torch.inference_mode()
def classify(subject: Subject, options: EvaluatorConfig) -> dict[str, Any]:
    """Accuracy and cross-entropy over the test split: every image counts once, none is padded or repeated.

    With `options.dataset`, over that variant of ImageNet instead, under its own rules.
    """
    asked = test_set(subject.shards, subject.index.classes, options)
    sums = torch.zeros(4, dtype=torch.float64, device=subject.device)
    for batch in subject.batches(asked.split, asked.shards):
        with subject.autocast():
            logits = subject.module(batch.images).float()
        sums += asked.count(logits, batch)
    return accuracies(subject.sum(sums)) | {"protocol": subject.protocol} | asked.row
