"""k-NN against scikit-learn's on the same features."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from scaling.evaluate.knn import nearest, vote

CLASSES = 7


def points(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised rows around the directions of their classes, far from separable."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(0))
    rows = centres[labels] + 2.0 * torch.randn(count, 12, generator=generator)
    return F.normalize(rows.double()), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (50, 0.5)])
def test_votes_are_those_of_scikit_learn(k: int, temperature: float) -> None:
    bank, labels = points(300, seed=1)
    queries, _ = points(90, seed=2)
    theirs = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    theirs.fit(bank.numpy(), labels.numpy())
    expected = theirs.predict_proba(queries.numpy())
    scores = vote(*nearest(queries, bank, labels, k), CLASSES, temperature)
    np.testing.assert_allclose((scores / scores.sum(dim=1, keepdim=True)).numpy(), expected, atol=1e-9)


def test_a_small_bank_is_filled_up_with_nothing() -> None:
    bank, labels = points(3, seed=1)
    queries, _ = points(5, seed=2)
    similarity, voted = nearest(queries, bank, labels, 4)
    assert similarity.shape == voted.shape == (5, 4)
    assert (similarity[:, 3] == -torch.inf).all()
    assert torch.equal(vote(similarity, voted, CLASSES, 0.1), vote(similarity[:, :3], voted[:, :3], CLASSES, 0.1))
    empty, _ = nearest(queries, bank[:0], labels[:0], 2)
    assert (empty == -torch.inf).all()


def test_a_small_temperature_overflows_nothing() -> None:
    """exp(similarity / temperature) is infinite in single precision; the shares are those of double precision."""
    temperature = 0.01
    bank, labels = points(300, seed=1)
    queries, _ = points(90, seed=2)
    similarity, voted = nearest(queries, bank, labels, 20)
    similarity = 0.9 + 0.1 * similarity  # near 1, as features of a trained encoder are
    votes = np.zeros((90, CLASSES))
    exact = similarity.numpy()
    for row in range(90):
        np.add.at(votes[row], voted[row].numpy(), np.exp((exact[row] - exact[row].max()) / temperature))
    expected = votes / votes.sum(axis=1, keepdims=True)
    assert torch.isinf((similarity.float() / temperature).exp()).all(dim=1).any()
    scores = vote(similarity.float(), voted, CLASSES, temperature).numpy()
    shares = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, expected, atol=1e-5)  # a similarity's rounding over the temperature
