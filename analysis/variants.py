"""Runs of one strategy, size and length that differ in more than their seed: ablations, and further axes of a study.

A curve, a ranking or a mean of one number a strategy would mix them. So the usual ones, which have in every setting
what most of the study has, stand for the strategy, and the others beside them in a table of their own. Where none is
usual (an axis whose values come equally often) all stay.
"""

from __future__ import annotations

import pandas as pd

from analysis import page
from analysis.page import Column
from analysis.seeds import spread, told
from analysis.settings import stage_of
from analysis.tables import Tables

CELL = ["protocol", "strategy", "encoder", "size", "total_images_seen"]
RUN = ["study", "run"]
SHARED = ("config.model.", "config.precision")
OF_STRATEGY = {"ar": "config.ar.", "mae": "config.mae."}
TRAIN = "config.train."
WATCHING = frozenset(
    TRAIN + name for name in ("evaluate", "eval_batch", "log_every", "checkpoint_every", "keep_checkpoints",
                              "keep_every", "micro_batch", "branches")
)  # fmt: skip
"""Fields that change no result."""


def varied(completed: pd.DataFrame) -> pd.DataFrame:
    """One row a run of these completed ones with an accuracy whose cell has runs of one seed with different settings.

    Columns: study, run, those of CELL, seed, top1, `variant` and `usual`. The variant names the settings in which the
    run differs from the usual one ("ar.cluster_side 2"), or, where none is usual, those in which the cell differs.
    """
    runs = completed[completed["top1"].notna()]
    repeated = runs[runs.duplicated([*CELL, "seed"], keep=False)]
    tables_of_cells = [_settings(cell, completed) for _, cell in repeated.groupby(CELL)]
    cells = [table for table in tables_of_cells if table.shape[1]]
    distinct = [table.drop_duplicates() for table in cells]
    names = sorted({str(name) for table in distinct for name in table})
    most = {name: _most(pd.concat([table[name] for table in distinct if name in table])) for name in names}
    parts = []
    for table in cells:
        shown = [str(name) for name in table]
        same = pd.DataFrame({name: table[name] == most[name] for name in shown})
        usual = same.all(axis=1)
        untold = same if usual.any() else same & False
        variant = [
            ", ".join(f"{name} {table.at[index, name]!s}" for name in shown if not untold.at[index, name])
            for index in table.index
        ]
        own = repeated.loc[table.index, [*RUN, *CELL, "seed", "top1"]]
        parts.append(own.assign(variant=variant, usual=usual))
    columns = [*RUN, *CELL, "seed", "top1", "variant", "usual"]
    return pd.concat(parts) if parts else pd.DataFrame(columns=columns)


def without_variants(completed: pd.DataFrame) -> pd.DataFrame:
    """The completed runs without those that stand beside a usual one."""
    table = varied(completed)
    beside = table[~table["usual"].astype(bool) & table.groupby(CELL)["usual"].transform("any").astype(bool)]
    left_out = pd.MultiIndex.from_frame(beside[RUN])
    return completed[~pd.MultiIndex.from_frame(completed[RUN]).isin(left_out)]


def _settings(cell: pd.DataFrame, completed: pd.DataFrame) -> pd.DataFrame:
    """What differs between the runs of a cell, as text: fields of the model and objective, of each stage its own."""
    strategy = str(cell["strategy"].iloc[0])
    names = [str(name) for name in cell]
    shared = [name for name in names if name.startswith((*SHARED, OF_STRATEGY.get(strategy, SHARED[0])))]
    train = [name for name in names if name.startswith(TRAIN) and name not in WATCHING]
    parts = [cell[shared].rename(columns={name: name.removeprefix("config.") for name in shared})]
    by_run = completed.drop_duplicates(RUN).set_index(RUN)
    rows = cell
    while True:
        stage = stage_of({"stage": rows["stage"].iloc[0], "parent": rows["parent"].iloc[0]})
        parts.append(rows[train].rename(columns={name: f"{stage}.{name.removeprefix(TRAIN)}" for name in train}))
        if rows["parent"].isna().any():
            break
        above = by_run.reindex(pd.MultiIndex.from_arrays([rows["study"], rows["parent"]]))
        rows = above.set_axis(rows.index).assign(study=rows["study"])
        if rows["stage"].isna().any():  # a parent that was not collected
            break
    table = pd.concat(parts, axis=1).map(_text)
    return table[[name for name in table if table[name].nunique() > 1]]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _most(values: pd.Series) -> str | None:
    """The value that comes most often, None where two do."""
    counts = values.value_counts()
    return None if len(counts) > 1 and counts.iloc[0] == counts.iloc[1] else str(counts.index[0])


def section(tables: Tables) -> str:
    """The table of variants, each against the usual runs of the same seeds; "" where there are none."""
    table = varied(tables.completed)
    if table.empty:
        return ""
    rows = []
    for place, cell in table.groupby(CELL):
        usual = cell[cell["usual"].astype(bool)].groupby("seed")["top1"].mean()
        for (name, is_usual), runs in cell.groupby(["variant", "usual"], sort=False):
            own = runs.groupby("seed")["top1"].mean()
            less = (own - usual).dropna()
            gain = told(*spread(less), digits=2) if len(less) and not is_usual else None
            rows.append((*place, name or "as usual", told(*spread(own), digits=1), gain, len(own)))
    columns = [*CELL, "variant", "top1", "gain", "seeds"]
    shown = (
        Column("protocol", "Evaluated by", page.text, numeric=False),
        Column("strategy", "Strategy", page.strategy, numeric=False),
        Column("encoder", "Encoder", page.text, numeric=False),
        Column("size", "Size", page.text, numeric=False),
        Column("total_images_seen", "Images, with ancestors", page.count),
        Column("variant", "Variant", page.sentence, numeric=False),
        Column("top1", "Top-1, %", page.text),
        Column("gain", "Less the usual, points", page.text),
        Column("seeds", "Seeds", page.count),
    )
    return f"""<h3>Variants</h3>
<p>Runs of one strategy, size and length that differ in a further setting, each against the usual runs of the same
seeds, which alone stand for the strategy elsewhere on this page. The usual ones have in every setting what most of the
study has; where that is undecided all of them stand everywhere. In brackets: 95 % intervals over seeds.</p>
{page.table(pd.DataFrame(rows, columns=columns), shown)}"""
