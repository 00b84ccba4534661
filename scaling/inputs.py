"""From a batch of the stream to what the objective takes: on the device, normalised, mixed where the stage mixes."""

from __future__ import annotations

import torch
from torch import Tensor

from data.batch import Batch, mix, normalize
from data.index import Index
from scaling.config import RunConfig, augmentation


class InputPipeline:
    """Callable: Batch -> (images (micro_batch, channels, height, width) float32, labels, soft targets or None)."""

    def __init__(self, config: RunConfig, index: Index, device: torch.device) -> None:
        self.augmentation = augmentation(config.train)
        self.classifies = config.classifies
        self.seed = config.seed
        self.index = index
        self.device = device

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Training inputs: flipped, and mixed by position where mixup, cutmix or smoothing is on."""
        images = normalize(batch.images, self.index.mean, self.index.std, flips=batch.flips, device=self.device)
        if not self.classifies:
            return images, None
        labels = batch.labels.to(self.device, non_blocking=True)
        if not self.augmentation.mixes:
            return images, labels
        return mix(images, labels, batch.positions, self.augmentation, len(self.index.classes), seed=self.seed)
