"""Replicas that average their gradients (DistributedDataParallel)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from models.noise import Noise
from models.objectives import Measured
from scaling.engines.base import Engine

BUCKET_MIB = 100
"""On GPUs products slow down while NCCL holds a part of the processors, so that fewer and larger messages, which are
done sooner, cost less than torch's of 25 MiB (docs/performance.md)."""


class DistributedEngine(Engine):
    """Every rank holds the whole model; gradients are averaged once a step."""

    eager_passes = 11
    """DistributedDataParallel lays out its buckets after the first pass and takes times in the first ten."""

    def wrap(self) -> None:
        self.rank.join()
        devices = [self.device.index] if self.device.type == "cuda" else None
        self.replica = DistributedDataParallel(
            self.objective, device_ids=devices, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MIB
        )

    def compute(self, images: Tensor, labels: Tensor | None, noise: Noise, last: bool) -> Measured:
        self.replica.require_backward_grad_sync = last  # read by forward, which arms the reducer
        with self.autocast():
            return self.replica(images, labels, noise)
