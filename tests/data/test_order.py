"""The order against its definition in words: every sample once an epoch, lanes of their own shards, no other state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import Order, lanes_of

COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@settings(deadline=None)
@given(COUNTS, st.integers(1, 24), st.integers(1, 8), st.integers(0, 3))
def test_every_sample_once_an_epoch(counts: list[int], global_batch: int, lanes: int, seed: int) -> None:
    order = Order(counts, global_batch, seed, lanes)
    total = sum(counts)
    steps = -(-3 * total // global_batch) + 1
    epochs, samples = order.at(np.arange(steps * global_batch))
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(samples[epochs == epoch]), np.arange(total))
    # Lanes differ by one image at most, so an epoch is over within one batch of its length.
    last = np.flatnonzero(epochs == 0).max()
    assert last // global_batch <= (total - 1) // global_batch + 1


@settings(deadline=None)
@given(COUNTS, st.integers(1, 24), st.data())
def test_positions_can_be_asked_in_any_company(counts: list[int], global_batch: int, data: st.DataObject) -> None:
    everything = Order(counts, global_batch, 1, 4).at(np.arange(6 * sum(counts)))
    some = np.array(data.draw(st.lists(st.integers(0, 6 * sum(counts) - 1), min_size=1, max_size=20)))
    epochs, samples = Order(counts, global_batch, 1, 4).at(some)
    np.testing.assert_array_equal(epochs, everything[0][some])
    np.testing.assert_array_equal(samples, everything[1][some])


def test_epochs_and_seeds_differ() -> None:
    order = Order([100] * 10, 50, 0, 10)
    _, first = order.at(np.arange(1000))
    _, second = order.at(np.arange(1000, 2000))
    _, other = Order([100] * 10, 50, 1, 10).at(np.arange(1000))
    assert np.mean(first == second) < 0.02
    assert np.mean(first == other) < 0.02


def test_a_batch_is_mixed_over_lanes_and_within_them() -> None:
    order = Order([100] * 64, 64, 0, 64)
    _, samples = order.at(np.arange(6400))
    assert len(np.unique(samples[:64] // 100)) > 40  # one batch holds samples of most shards
    places = samples.reshape(100, 64)[:, 5] % 100  # of one lane
    assert abs(np.corrcoef(np.arange(100), places)[0, 1]) < 0.4


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_node_needs_only_its_share_of_the_shards(nodes: int) -> None:
    shards, each, global_batch = 80, 16, 64
    order = Order([each] * shards, global_batch, 0, 64)
    for epoch in range(2):
        positions = np.arange(epoch * shards * each, (epoch + 1) * shards * each)
        _, samples = order.at(positions)
        for node in range(nodes):
            mine = positions % global_batch // (global_batch // nodes) == node
            needed = np.unique(samples[mine] // each)
            assert len(needed) <= 1.1 / nodes * shards


def test_lanes_divide_the_batch() -> None:
    assert [lanes_of(batch) for batch in (1024, 64, 96, 63, 97, 1)] == [64, 64, 48, 63, 1, 1]
    assert lanes_of(1024, 4) == 4
