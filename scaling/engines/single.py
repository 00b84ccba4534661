"""One process, one device."""

from __future__ import annotations

from torch import Tensor

from models.noise import Noise
from models.objectives import Measured
from scaling.engines.base import Engine


class SingleEngine(Engine):
    """The plain case, and the oracle of the others."""

    eager_passes = 3

    def compute(self, images: Tensor, labels: Tensor | None, noise: Noise, last: bool) -> Measured:
        with self.autocast():
            return self.objective(images, labels, noise)
