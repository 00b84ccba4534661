"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from scaling.config import TrainConfig, peak_lr


def learning_rate(train: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up from 0, then half a cosine down to min_lr (sheet 2 and 3), for the step about to be taken.

    `step` counts from 0; the official scripts set the rate from the fractional epoch before each step, which is this.
    """
    peak, warmup = peak_lr(train), train.warmup * steps
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1.0, steps - warmup)
    return train.min_lr + (peak - train.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
