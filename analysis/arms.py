"""Arms: the runs that one curve, mean or law may hold, those of one strategy, encoder, resolution and data set."""

from __future__ import annotations

import pandas as pd

ARM = ["strategy", "encoder", "resolution", "data"]


def several(runs: pd.DataFrame, name: str) -> bool:
    """Whether the column tells the runs apart. Numbers under `data` name no data set: other tables count images so."""
    amounts = name == "data" and name in runs and pd.api.types.is_numeric_dtype(runs[name])
    return name in runs and not amounts and int(runs[name].nunique()) > 1


def labels(runs: pd.DataFrame) -> pd.Series:
    """The arm of each run: its strategy, with encoder, resolution and data set where the runs have several of them."""
    label = runs["strategy"].astype(str)
    for name in filter(lambda name: several(runs, name), ARM[1:]):
        label = label + ", " + runs[name].map(told if name == "resolution" else str)
    return label


def told(resolution: float) -> str:
    """A resolution for people; runs of other programs may have none."""
    return f"{resolution:g} px" if resolution == resolution else "unknown px"
