"""The linear probe against scikit-learn's logistic regression on the same features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from scaling.evaluate.probe import C, fit, moments

CLASSES = 5


def points(count: int, seed: int, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, 9, generator=torch.Generator().manual_seed(0))
    scales = torch.logspace(-2, 2, 9)
    return scales * (centres[labels] + 1.5 * torch.randn(count, 9, generator=generator)) + 3.0, labels


def test_solution_is_that_of_scikit_learn() -> None:
    inputs, labels = points(400, seed=1)
    mean, deviation = moments(inputs, lambda value: value)
    scaled = (inputs - mean) / deviation
    theirs = StandardScaler().fit(inputs.double().numpy())
    np.testing.assert_allclose(scaled.numpy(), theirs.transform(inputs.double().numpy()), atol=1e-5)
    expected = LogisticRegression(C=C, max_iter=10_000, tol=1e-9).fit(scaled.double().numpy(), labels.numpy())
    weight, bias = fit(scaled, labels, CLASSES, lambda value: value, scaled.device)
    np.testing.assert_allclose(weight.numpy(), expected.coef_, atol=2e-3)
    tests = (points(500, seed=2)[0] - mean) / deviation
    probabilities = (tests.double() @ weight.T + bias).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, expected.predict_proba(tests.double().numpy()), atol=1e-3)


@pytest.mark.parametrize("strength", [1, 2])
def test_two_classes_are_multinomial_too(strength: int) -> None:
    """Two opposite rows of weights cost half of what scikit-learn's one row costs, which is their difference."""
    inputs, labels = points(400, seed=1, classes=2)
    mean, deviation = moments(inputs, lambda value: value)
    scaled = (inputs - mean) / deviation
    expected = LogisticRegression(C=strength * C, max_iter=10_000, tol=1e-9).fit(
        scaled.double().numpy(), labels.numpy()
    )
    weight, _ = fit(scaled, labels, 2, lambda value: value, scaled.device)
    difference = (weight[1] - weight[0]).numpy() - expected.coef_[0]
    assert (np.abs(difference).max() < 2e-3) == (strength == 2)


def test_a_constant_feature_does_no_harm() -> None:
    inputs, labels = points(100, seed=1)
    inputs[:, 4] = 2.5
    mean, deviation = moments(inputs, lambda value: value)
    assert deviation[4] == 1.0
    weight, bias = fit((inputs - mean) / deviation, labels, CLASSES, lambda value: value, inputs.device)
    assert weight.isfinite().all()
    assert bias.isfinite().all()
    assert weight[:, 4].abs().max() == 0
