"""Set-ups: the runs whose speeds one line, bar or median may hold.

Speeds are told apart by more than accuracies are: the devices that shared a batch always, and what else a study has
varied for one size (the engine, the card, compilation). What differs between sizes alone, as the micro-batch does that
a card can hold, parts no line.
"""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from analysis.arms import several, told

ALWAYS = ("encoder", "resolution", "devices")
WHERE_VARIED = (
    "engine",
    "device",
    "precision",
    "global_batch",
    "micro_batch",
    "config.compile",
    "config.checkpointing",
)


def setups(runs: pd.DataFrame, beside: Collection[str] = ()) -> pd.Series:
    """The set-up of each run: its strategy, with what tells its speed apart from others of these runs of its stage.

    The columns `beside` are left out of the names, for tables that have them as columns of their own.
    """
    parts = [_of_stage(part, beside) for _, part in runs.groupby("stage", dropna=False)]
    return pd.concat(parts).reindex(runs.index) if parts else pd.Series(index=runs.index, dtype=str)


def _of_stage(runs: pd.DataFrame, beside: Collection[str]) -> pd.Series:
    label = runs["strategy"].astype(str)
    for name in _telling(runs):
        if name not in beside:
            label = label + ", " + runs[name].map(lambda value, name=name: told_setting(name, value))
    return label


def _telling(runs: pd.DataFrame) -> list[str]:
    """The columns that tell the set-ups of one stage apart."""
    names = [name for name in ALWAYS if several(runs, name)]
    for name in filter(lambda name: several(runs, name), WHERE_VARIED):
        if runs.groupby(["strategy", *names, "size"], dropna=False)[name].nunique().max() > 1:
            names.append(name)
    return names


def told_setting(name: str, value: object) -> str:
    """One setting for people."""
    if isinstance(value, float):
        plain = f"{value:g}"
        return {"resolution": told(value), "devices": f"{plain} device{'' if value == 1 else 's'}",
                "global_batch": f"batch {plain}", "micro_batch": f"{plain} at once"}.get(name, plain)  # fmt: skip
    if name == "config.compile":
        return "compiled" if value is True else "eager"
    if name == "config.checkpointing":
        return "checkpointing" if value is True else "no checkpointing"
    return str(value)
