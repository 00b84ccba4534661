"""One process, one device."""

from __future__ import annotations

from torch import Tensor

from models.noise import Noise
from scaling.engines.base import Engine


class SingleEngine(Engine):
    """The plain case, and the oracle of the others."""

    def forward(
        self, images: Tensor, labels: Tensor | None, noise: Noise, *, last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with self.autocast():
            return self.objective(images, labels, noise)
