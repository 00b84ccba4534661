from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from data import draws


def test_known_splitmix_sequence() -> None:
    # The first outputs of SplitMix64 from state 1234567 (the reference implementation's own example values).
    states = (1234567 + draws.GOLDEN * np.arange(1, 4, dtype=object)) % (1 << 64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert draws.mix(states.astype(np.uint64)).tolist() == expected


def test_a_row_depends_on_its_counter_alone() -> None:
    together = draws.uniforms(7, np.arange(100), 12)
    alone = draws.uniforms(7, np.array([42]), 5)
    np.testing.assert_array_equal(together[42, :5], alone[0])


def test_uniform_and_normal_distributions() -> None:
    numbers = draws.uniforms(draws.key(3, "test"), np.arange(4000), 5)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for column in range(4):
        assert abs(np.corrcoef(numbers[:, column], numbers[:, column + 1])[0, 1]) < 0.06
    assert stats.kstest(draws.normals(5, 9, 20001), "norm").pvalue > 1e-3


def test_keys_differ_by_value_name_and_order() -> None:
    keys = [draws.key(0, "a", 1), draws.key(0, "a", 2), draws.key(0, "b", 1), draws.key(1, "a", 0), draws.key(0, 1)]
    assert len(set(keys)) == len(keys)


@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    values = np.arange(size)
    image = draws.permute(values, np.full(size, size), np.full(size, key, np.uint64))
    np.testing.assert_array_equal(np.sort(image), values)


def test_permute_spreads_every_value_over_every_place() -> None:
    size, keys = 10, np.arange(20_000, dtype=np.uint64)
    places = draws.permute(np.full(len(keys), 3), np.full(len(keys), size), draws.mix(keys))
    assert stats.chisquare(np.bincount(places, minlength=size)).pvalue > 1e-3
