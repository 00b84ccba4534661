"""What a strategy has over the control `scratch`: differences under the same protocol, taken seed by seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import page, style
from analysis.arms import several
from analysis.figures import accuracies, at_full_length
from analysis.page import Column
from analysis.seeds import spread, told
from analysis.tables import Tables

CONTROL = "scratch"
CELL = ["protocol", "encoder", "resolution", "data", "size"]
MEASURED = (
    Column("resolution", "Pixels", page.count),
    Column("data", "Data set", page.text, numeric=False),
)
"""What a table shows of an accuracy where runs of several stand in it."""


def judged(tables: Tables) -> pd.DataFrame:
    """Accuracies of completed runs at full length, and of probes those under their further protocols (k-NN)."""
    own = at_full_length(accuracies(tables))
    probes = tables.completed.loc[tables.completed["stage"] == "probe", ["study", "run", *CELL[1:], "strategy", "seed"]]
    evaluations = tables.own_evaluations
    rows = evaluations.loc[evaluations["top1"].notna(), ["study", "run", "protocol", "top1"]]
    rows = rows.merge(probes, on=["study", "run"])
    columns = ["study", "run", *CELL, "strategy", "seed", "top1"]
    return pd.concat([own[columns], rows[columns]]).drop_duplicates(["study", "run", "protocol"])


def against_control(data: pd.DataFrame) -> pd.DataFrame:
    """One row a protocol, encoder, resolution, data set, size and strategy; empty where there is no control.

    `data` is that of `judged`. mean, low, high are of top-1, difference, difference_low and difference_high of top-1
    less the control's of the same seed; `seeds` counts them. The control's own row has no difference.
    """
    rows = []
    for place, cell in data.groupby(CELL, dropna=False):
        seeds = cell.pivot_table(index="seed", columns="strategy", values="top1", aggfunc="mean")
        if CONTROL not in seeds:
            continue
        for name in seeds:
            own = (seeds[name] - seeds[CONTROL]).dropna()
            differences = (np.nan,) * 3 if name == CONTROL or own.empty else spread(own)
            rows.append((*place, name, *spread(seeds[name].dropna()), *differences, len(own)))
    columns = [*CELL, "strategy", "mean", "low", "high", "difference", "difference_low", "difference_high", "seeds"]
    return style.reading_order(pd.DataFrame(rows, columns=columns), [*CELL, "strategy"])


def section(tables: Tables) -> str:
    """The table with what it may be read as; "" without a control to compare with."""
    table = against_control(judged(tables))
    if not table["difference"].notna().any():
        return ""
    table["top1"] = [told(*row, digits=1) for row in table[["mean", "low", "high"]].to_numpy()]
    ends = ["difference", "difference_low", "difference_high"]
    table["gain"] = [told(*row, digits=2) for row in table[ends].to_numpy()]
    columns = (
        Column("protocol", "Evaluated by", page.text, numeric=False),
        Column("strategy", "Strategy", page.strategy, numeric=False),
        Column("encoder", "Encoder", page.text, numeric=False),
        *(column for column in MEASURED if several(table, column.field)),
        Column("size", "Size", page.text, numeric=False),
        Column("top1", "Top-1, %", page.text),
        Column("gain", "Less the control, points", page.text),
        Column("seeds", "Seeds", page.count),
    )
    return f"""<h3>Against the control</h3>
<p>The control saw the finetuning images alone; under linear_probe and knn it is the random encoder. Differences are
taken seed by seed. In brackets: 95 % intervals over seeds (Student's t), wide with few of them; a difference whose
interval holds zero is not shown by these runs.</p>{page.table(table, columns)}"""
