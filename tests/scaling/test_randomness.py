"""Counter-based random numbers: a function of position, and uniform."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scaling.randomness import step_noise, uniform


@given(seed=st.integers(0, 2**63), start=st.integers(0, 2**40), cut=st.integers(1, 15))
def test_depends_on_the_position_alone(seed: int, start: int, cut: int) -> None:
    positions = np.arange(start, start + 16)
    whole = uniform(seed, "x", positions, 3, 2)
    parts = [uniform(seed, "x", positions[:cut], 3, 2), uniform(seed, "x", positions[cut:], 3, 2)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole.flip(0), uniform(seed, "x", positions[::-1].copy(), 3, 2))


def test_uniform_and_uncorrelated() -> None:
    draws = uniform(0, "x", np.arange(2000), 64).double()
    assert draws.min() >= 0.0 and draws.max() < 1.0
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3
    for moved in (draws.roll(1, 0), draws.roll(1, 1), uniform(1, "x", np.arange(2000), 64).double(),
                  uniform(0, "y", np.arange(2000), 64).double()):  # fmt: skip
        correlation = torch.corrcoef(torch.stack([draws.flatten(), moved.flatten()]))[0, 1]
        assert abs(correlation) < 4 / draws.numel() ** 0.5


def test_noise_shapes() -> None:
    noise = step_noise(0, "pretrain", torch.arange(5), tokens=7, depth=3)
    assert noise.mask is not None and noise.drop_path is not None
    assert noise.mask.shape == (5, 7)
    assert noise.drop_path.shape == (5, 3, 2)
    assert step_noise(0, "pretrain", torch.arange(5), tokens=0, depth=0) == (None, None)
