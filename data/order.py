"""The order of samples: a pure function of (seed, images consumed), free of ranks, workers and micro-batches.

Every epoch permutes the shards, strings them together and cuts the string into `lanes` equal pieces; a lane shuffles
inside blocks of about two shards. Images are dealt to the lanes in turn, so the data set's N images last exactly N
images of training: nothing is dropped or repeated at the end of an epoch, and a batch may hold the end of one epoch
and the start of the next. Lanes differ in length by at most one image, and never drift apart by more.

In a batch of B images, positions [l B/C, (l+1) B/C) come from lane l of C. A node whose ranks hold a range of
positions so reads only the shards of its lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data import draws

Numbers = NDArray[np.int64]

DEFAULT_LANES = 64
BLOCK_SHARDS = 2
"""A lane shuffles over blocks as long as this many mean shards."""


def lanes_of(global_batch: int, lanes: int = DEFAULT_LANES) -> int:
    """The largest divisor of global_batch that is at most `lanes`."""
    return max(count for count in range(1, min(lanes, global_batch) + 1) if global_batch % count == 0)


class Order:
    """Which sample stands at which position of the training sequence.

    `shard_samples` are the samples of each shard, in the order of the index; samples are numbered through it.
    """

    def __init__(self, shard_samples: Sequence[int] | Numbers, global_batch: int, seed: int, lanes: int) -> None:
        self.counts = np.asarray(shard_samples, np.int64)
        self.first = np.cumsum(self.counts) - self.counts
        self.samples = int(self.counts.sum())
        self.global_batch = global_batch
        self.lanes = lanes_of(global_batch, lanes)
        self.seed = seed
        self.block = max(1, BLOCK_SHARDS * self.samples // len(self.counts))
        self._strings: dict[int, tuple[Numbers, Numbers]] = {}

    def at(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """(epochs, samples) at these positions of the sequence, counted from 0 over the whole training."""
        width = self.global_batch // self.lanes
        step, place = np.divmod(positions, self.global_batch)
        lane = place // width
        turn = step * width + place % width
        epochs = (turn * self.lanes + lane) // self.samples
        samples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            samples[inside] = self._in_epoch(int(epoch), lane[inside], turn[inside])
        return epochs, samples

    def _in_epoch(self, epoch: int, lane: Numbers, turn: Numbers) -> Numbers:
        start = epoch * self.samples
        index = turn + (lane - start) // self.lanes  # minus the first turn of this lane in the epoch
        lane_start = self._dealt_below(epoch, lane)
        length = self._dealt_below(epoch, lane + 1) - lane_start
        block = index // self.block
        base = block * self.block
        keys = self._block_keys(epoch, lane, block)
        place = lane_start + base + draws.permute(index - base, np.minimum(self.block, length - base), keys)
        shards, starts = self._string(epoch)
        piece = np.searchsorted(starts, place, side="right") - 1
        return self.first[shards[piece]] + place - starts[piece]

    def _dealt_below(self, epoch: int, lane: Numbers) -> Numbers:
        """Images of the epoch that are dealt to lanes before `lane`, when all images are dealt in turn."""

        def before(image: int) -> Numbers:
            return image // self.lanes * lane + np.minimum(image % self.lanes, lane)

        return before((epoch + 1) * self.samples) - before(epoch * self.samples)

    def _block_keys(self, epoch: int, lane: Numbers, block: Numbers) -> draws.Words:
        base = np.uint64(draws.key(self.seed, "blocks", epoch))
        return draws.mix(draws.mix(lane.astype(np.uint64) + base) + block.astype(np.uint64))

    def _string(self, epoch: int) -> tuple[Numbers, Numbers]:
        """The shards of an epoch in their order, and where each starts in their string."""
        if epoch in self._strings:
            return self._strings[epoch]
        shards = draws.permutation(draws.key(self.seed, "shards", epoch), len(self.counts))
        # An empty shard shares its start with its follower, and searchsorted takes the later of equals.
        counts = self.counts[shards]
        self._strings = {known: self._strings[known] for known in self._strings if known == epoch - 1}
        self._strings[epoch] = (shards, np.cumsum(counts) - counts)
        return self._strings[epoch]
