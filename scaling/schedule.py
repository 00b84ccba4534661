"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from scaling.config import TrainConfig, peak_lr


def learning_rate(train: TrainConfig, step: int, steps: int) -> float:
    """The rate of the step about to be taken; `step` counts from 0.

    Linear warm-up from 0, then by `schedule`
    cosine: half a cosine down to min_lr (sheet 2 and 3);
    wsd: constant, and over the last `decay` of the steps down to min_lr as 1 - sqrt (Haegele et al. 2024,
    arXiv 2405.18392, section 3). Without a decay it is the trunk from which decays of many lengths branch off.
    The official scripts set the rate from the fractional epoch before each step, which is this.
    """
    peak, warmup = peak_lr(train), train.warmup * steps
    if step < warmup:
        return peak * step / warmup
    if train.schedule == "wsd":
        decay = train.decay * steps
        into_decay = step - (steps - decay)
        share = 1.0 - math.sqrt(into_decay / decay) if into_decay > 0 else 1.0
    else:
        progress = (step - warmup) / max(1.0, steps - warmup)
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return train.min_lr + (peak - train.min_lr) * share
