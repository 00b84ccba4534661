"""Means over seeds with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import special

LEVEL = 0.95


def spread(values: pd.Series) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % interval of the mean by Student's t; its ends are nan with fewer than two values."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return mean, np.nan, np.nan
    half = special.stdtrit(count - 1, (1 + LEVEL) / 2) * float(values.std()) / np.sqrt(count)
    return mean, mean - half, mean + half


def told(value: float, low: float, high: float, *, digits: int) -> str | None:
    """A fraction and its interval in percent or points; None where there is no value."""
    if np.isnan(value):
        return None
    text = f"{100 * value:.{digits}f}"
    return text if np.isnan(low) else f"{text} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"
