"""Whether training is well: steps that were masked or whose loss is a spike, judged by the losses before them."""

from __future__ import annotations

import statistics

from scaling.config import FaultsConfig
from scaling.steps import Step

WINDOW = 64
"""Losses that the next one is compared with; before half of them are there, nothing counts as a spike."""
FLOOR = 0.01
"""A deviation is no less than this part of the median: a loss that hardly varies is not judged by its noise."""


class Health:
    """Counts bad steps in a row. The same on every rank, as losses and norms are.

    A single masked step is over with the mask, and a single high loss may be its batch's: only `bad_steps` in a row are
    an illness. While the last step is bad no checkpoint is made, so that the last one is from before.
    """

    def __init__(self, limits: FaultsConfig, losses: list[float]) -> None:
        self.limits = limits
        self.restart(losses)

    def restart(self, losses: list[float]) -> None:
        """From these losses on, the list itself, which the checkpoints hold."""
        self.losses = losses
        self.bad: list[Step] = []

    def judge(self, step: Step) -> None:
        """Takes a finished step in."""
        if not step.finite or self._is_spike(step.loss):
            self.bad.append(step)
            return
        self.bad.clear()
        self.losses.append(step.loss)
        del self.losses[:-WINDOW]

    @property
    def suspicious(self) -> bool:
        """Whether the last step was bad."""
        return bool(self.bad)

    @property
    def ill(self) -> bool:
        """Whether too many in a row were."""
        return len(self.bad) >= self.limits.bad_steps

    def _is_spike(self, loss: float) -> bool:
        """Above the median by more than `spike` deviations: 1.4826 median distances from it, as for normals."""
        if not self.limits.spike or len(self.losses) < WINDOW // 2:
            return False
        median = statistics.median(self.losses)
        spread = 1.4826 * statistics.median(abs(one - median) for one in self.losses)
        return loss > median + self.limits.spike * max(spread, FLOOR * abs(median))
