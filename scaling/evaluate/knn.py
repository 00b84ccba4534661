"""Weighted k-nearest neighbours on frozen features (Wu et al. 2018, section 3.4; DINO, Caron et al. 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scaling.config import EvaluatorConfig
from scaling.evaluate.features import features
from scaling.evaluate.subject import TEST, Subject

CHUNK = 1024
"""Test images compared with the training images at a time."""


@torch.inference_mode()
def knn(subject: Subject, options: EvaluatorConfig) -> dict[str, Any]:
    """Accuracy of the vote of the k most similar training images (cosine), each weighing exp(similarity / temperature).

    Every rank looks for the neighbours of all test images among its own part of the training images; the best k of all
    ranks' are those of the whole. DINO's protocol: k = 20, temperature 0.07. Classes without a
    vote rank by their number.
    """
    bank, bank_labels = features(subject, "train")
    queries, labels = (subject.gather(part) for part in features(subject, TEST))
    images = int(subject.sum(torch.tensor(len(bank), device=subject.device)))
    similarity, voted = nearest(F.normalize(queries), F.normalize(bank), bank_labels, min(options.k, images))
    # (k, queries) a rank becomes (ranks * k, queries), of which the best k remain.
    similarity, voted = subject.gather(similarity.T.contiguous()).T, subject.gather(voted.T.contiguous()).T
    similarity, best = similarity.topk(min(options.k, images), dim=1)
    scores = vote(similarity, voted.gather(1, best), len(subject.index.classes), options.temperature)
    top = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    count = len(labels)
    return {
        "protocol": "knn",
        "top1": top[:, 0].sum().item() / count,
        "top5": top.sum().item() / count,
        "images": count,
    }


def nearest(queries: Tensor, bank: Tensor, bank_labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities and labels (queries, k) of the nearest rows of `bank`; -inf and 0 where it has fewer than k."""
    here = min(k, len(bank))
    similarity = queries.new_full((len(queries), k), -torch.inf)
    voted = bank_labels.new_zeros(len(queries), k)
    for start in range(0, len(queries) if here else 0, CHUNK):
        part = slice(start, start + CHUNK)
        similarity[part, :here], found = (queries[part] @ bank.T).topk(here, dim=1)
        voted[part, :here] = bank_labels[found]
    return similarity, voted


def vote(similarity: Tensor, voted: Tensor, classes: int, temperature: float) -> Tensor:
    """(queries, classes) scores from the similarities and labels (queries, k) of the neighbours, the nearest first.

    A query's weights are in units of its nearest neighbour's: those themselves overflow at a small temperature.
    """
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    return weights.new_zeros(len(weights), classes).scatter_add(1, voted, weights)
