"""A split of the training images for choosing hyperparameters, so that the test images choose nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data import draws
from scaling.errors import UserError


@dataclass(frozen=True)
class Part:
    """One side of the division of a split: the images held out, or those that remain.

    Of every class of n images the round(fraction n) are held out whose index has the smallest hash; at least one is,
    and one remains, where the class has two. Index and class alone decide: seeds, ranks and epochs change nothing.
    """

    fraction: float
    held_out: bool

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise UserError("held_out", self.fraction, "a fraction between 0 and 1")

    def samples(self, labels: NDArray[np.integer]) -> NDArray[np.int64]:
        """The samples of this side, ascending; `labels` (samples,) are the classes of all samples of the split."""
        count = len(labels)
        order = np.lexsort((draws.words(draws.key("held out"), np.arange(count), 1)[:, 0], labels))
        ordered = labels[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        sizes = np.diff(np.r_[starts, count])
        out = np.clip(
            np.rint(self.fraction * sizes).astype(np.int64), np.minimum(1, sizes - 1), np.maximum(sizes - 1, 0)
        )
        rank = np.arange(count) - np.repeat(starts, sizes)
        chosen = (rank < np.repeat(out, sizes)) == self.held_out
        return np.sort(order[chosen]).astype(np.int64)
