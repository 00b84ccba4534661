"""Samples that turned out unreadable in training: a few are replaced, many stop the run with their list."""

from __future__ import annotations

import torch
import torch.distributed as dist

from data.stream import too_many_unreadable, unreadable_allowed
from scaling.sidegroup import SideGroup


class Unreadable:
    """What all ranks have met together, so that the limit is the same at every world size."""

    def __init__(self, shards: str, samples: int) -> None:
        self.shards = shards
        self.allowed = unreadable_allowed(samples)
        self.met: set[str] = set()  # by this rank: the texts of Batch.skipped

    def check(self, side: SideGroup) -> None:
        """UserError on every rank when more samples than allowed were met. All ranks call it at the same step."""
        counts = side.gather(torch.tensor([len(self.met)])).result()
        if int(counts.sum()) <= self.allowed:
            return
        everywhere = [self.met] * len(counts)
        if side.group is not None:
            dist.all_gather_object(everywhere, self.met, group=side.group)
        met = set().union(*everywhere)  # two ranks meet the same sample in different epochs
        if len(met) > self.allowed:
            raise too_many_unreadable(self.shards, met)
