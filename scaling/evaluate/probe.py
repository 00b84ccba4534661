"""Linear probe: multinomial logistic regression on frozen features, solved rather than trained.

The protocol is CLIP's (Radford et al. 2021, appendix A.3, and its repository's example): L-BFGS, at most 1,000
iterations, C = 0.316, no augmentation. Features are standardised by the training images' mean and deviation, which is
the batch norm without affine parameters that MAE puts before its probe (He et al. 2022, appendix A.1). With the
objective convex and every number fixed, nothing is chosen and no seed enters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from scaling.config import EvaluatorConfig
from scaling.evaluate.accuracy import accuracies, counts
from scaling.evaluate.features import features
from scaling.evaluate.subject import TEST, Subject

C = 0.316
ITERATIONS = 1000
TOLERANCE = 1e-5  # of the largest component of the gradient
CHUNK = 16384
"""Images whose logits are in memory at a time."""


def linear_probe(subject: Subject, _options: EvaluatorConfig) -> dict[str, Any]:
    """Accuracy on the test split of the probe fitted on the whole training split; each rank holds its own images."""
    inputs, labels = features(subject, "train")
    mean, deviation = moments(inputs, subject.sum)
    weight, bias = fit((inputs - mean) / deviation, labels, len(subject.index.classes), subject.sum, subject.device)
    tests, test_labels = features(subject, TEST)
    logits = ((tests - mean) / deviation).double() @ weight.T + bias
    return accuracies(subject.sum(counts(logits, test_labels))) | {"protocol": "linear_probe"}


def moments(inputs: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (width,) of the rows of all ranks; a constant feature has deviation 1."""
    rows = total(inputs.new_tensor(len(inputs), dtype=torch.float64))
    mean = total(inputs.double().sum(dim=0)) / rows
    variance = total((inputs.double() - mean).square().sum(dim=0)) / rows
    deviation = torch.where(variance > 0, variance.sqrt(), 1.0)
    return mean.float(), deviation.float()


def fit(
    inputs: Tensor, labels: Tensor, classes: int, total: Callable[[Tensor], Tensor], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Weight (classes, width) and bias (classes,), float64, that minimise over the rows of all ranks

        mean cross-entropy + |weight|^2 / (2 C rows),

    which is scikit-learn's LogisticRegression; of two classes, where that has one row of weights, its one with 2 C.
    `total` sums a tensor over ranks, which take the same steps.
    """
    rows = float(total(inputs.new_tensor(len(inputs), dtype=torch.float64)))
    width = inputs.shape[1]

    def objective(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(theta).to(device).view(classes, width + 1)
        weight, bias = parameters[:, :width], parameters[:, width]
        sums = torch.zeros(classes * (width + 1) + 1, dtype=torch.float64, device=device)
        gradient = sums[1:].view(classes, width + 1)
        for part, label in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True):
            logits = part.double() @ weight.T + bias
            sums[0] += F.cross_entropy(logits, label, reduction="sum")
            residual = logits.softmax(dim=1) - F.one_hot(label, classes)
            gradient[:, :width] += residual.T @ part.double()
            gradient[:, width] += residual.sum(dim=0)
        sums = total(sums) / rows
        penalty = 1 / (C * rows)
        sums[1:].view(classes, width + 1)[:, :width] += penalty * weight
        loss = sums[0] + penalty / 2 * weight.square().sum()
        return loss.item(), sums[1:].cpu().numpy()

    with torch.inference_mode():
        start = np.zeros(classes * (width + 1))
        options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps}
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        parameters = torch.from_numpy(found.x).to(device).view(classes, width + 1)
    return parameters[:, :width], parameters[:, width]
