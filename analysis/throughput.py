"""How fast the runs were once they ran steadily, how well that scales over devices, and what an accuracy cost."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
from scipy import special

from analysis.arms import ARM
from analysis.laws import Array
from analysis.setups import setups
from analysis.tables import Tables
from scaling.errors import UserError

RATES = ("images_per_second", "tokens_per_second", "step_seconds", "data_seconds", "mfu", "memory_bytes", "devices",
         "micro_batch")  # fmt: skip
FACTS = ("strategy", "encoder", "size", "stage", "seed", "engine", "precision", "resolution", "device", "parameters",
         "global_batch", "peak_memory_bytes", "config.compile", "config.checkpointing")  # fmt: skip
COMPARED = ("strategy", "encoder", "size", "stage", "resolution", "device", "precision", "config.compile",
            "config.checkpointing", "engine")  # fmt: skip
"""What runs on several numbers of devices have in common whose speeds tell an efficiency."""
WARM_UP = 0.1
STEADY_RULE = "medians over the logged intervals after the first tenth (at least one) of each attempt"
IDENTITY_TOLERANCE = 0.05
RUN = ["study", "run"]


def steady(metrics: pd.DataFrame) -> pd.DataFrame:
    """The records of steady state: each attempt's without its first tenth, and without at least the first.

    The first intervals hold compilation, caches being filled and workers starting.
    An attempt with a single record has no steady state and gives no row.
    """
    attempts = metrics.groupby([*RUN, "attempt"], dropna=False)
    place, length = attempts.cumcount(), attempts["step"].transform("size")
    return metrics[place >= (length * WARM_UP).clip(lower=1)]


def run_rates(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row a run: the steady-state median of each rate, and `intervals`, how many records it rests on."""
    runs = steady(metrics).groupby(RUN)
    table = runs[list(RATES)].median()
    table["intervals"] = runs.size()
    table["devices"] = table["devices"].where(table["devices"] >= 1)  # else a rate a device is none
    return table.reset_index()


def study_rates(tables: Tables) -> pd.DataFrame:
    """run_rates with the FACTS of each run and its `setup`: one row a run, those of one set-up and size comparable."""
    facts = [name for name in FACTS if name in tables.runs]
    table = tables.runs[[*RUN, *facts]].merge(run_rates(tables.metrics), on=RUN)
    return table.assign(setup=setups(table))


def speeds(tables: Tables) -> pd.DataFrame:
    """study_rates with what people compare: one row a run.

    Adds images_per_second_per_device, tokens_per_second_per_device, data_share (of the step spent waiting for data),
    low and high (95 % bootstrap interval of the median images per second) and `identity`: images per second times
    seconds a step over global_batch, which is 1 where the log is consistent; `consistent` says within 5 %.
    """
    table = study_rates(tables)
    for name in ("images_per_second", "tokens_per_second"):
        table[f"{name}_per_device"] = table[name] / table["devices"]
    table["data_share"] = table["data_seconds"] / table["step_seconds"]
    records = steady(tables.metrics).groupby(RUN)["images_per_second"]
    ends = {run: median_interval(values.dropna().to_numpy()) for run, values in records}
    pairs = [ends[run] for run in zip(table["study"], table["run"], strict=True)]
    table[["low", "high"]] = np.array(pairs, dtype=float).reshape(-1, 2)
    table["identity"] = table["images_per_second"] * table["step_seconds"] / table["global_batch"]
    table["consistent"] = (table["identity"] - 1).abs() <= IDENTITY_TOLERANCE
    return table


def median_interval(values: Array) -> tuple[float, float]:
    """95 % percentile interval of the bootstrapped median, exactly, without drawing; nan without values.

    Of n values drawn again, the m-th smallest is at most the k-th of the originals when at least m of the n draws fall
    on the first k: with probability P(Binomial(n, k / n) >= m) (Efron 1982, section 10.2).
    """
    if not len(values):
        return np.nan, np.nan
    low, high = _median_places(len(values))
    ordered = np.sort(values)
    return float(ordered[low]), float(ordered[high])


@functools.cache
def _median_places(count: int) -> tuple[int, int]:
    """Which of the ordered values are the ends. Of an even count, the lower middle gives the low end, the upper the
    high end, so that the interval is rather too wide."""
    shares = np.arange(1, count + 1) / count
    below = special.bdtrc((count + 1) // 2 - 1, count, shares), special.bdtrc(count // 2, count, shares)
    return int(np.argmax(below[0] >= 0.025)), int(np.argmax(below[1] >= 0.975))


def efficiency(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Rate per device against the smallest number of devices: columns of COMPARED, batch, devices, rate and efficiency.

    `kind` weak compares runs of one batch per device, strong runs of one global batch. Runs of one cell are medians;
    cells measured at a single number of devices give no row, as there is nothing to compare.
    """
    if kind not in ("weak", "strong"):
        raise UserError("kind", kind, ("weak", "strong"))
    batch = table["global_batch"] / table["devices"] if kind == "weak" else table["global_batch"]
    keys = [*COMPARED, "batch"]
    table = table.reindex(columns=[*COMPARED, "devices", "images_per_second_per_device"])
    rate = table.assign(batch=batch).groupby([*keys, "devices"], dropna=False)["images_per_second_per_device"].median()
    cells = rate.rename("rate").reset_index().sort_values("devices", kind="stable")
    groups = cells.groupby(keys, dropna=False)
    cells["efficiency"] = cells["rate"] / groups["rate"].transform("first")
    return cells[groups["devices"].transform("nunique") > 1].reset_index(drop=True)


def both_efficiencies(table: pd.DataFrame) -> pd.DataFrame:
    """efficiency of both kinds under each other, with the column `kind`."""
    parts = [efficiency(table, kind).assign(kind=kind) for kind in ("weak", "strong")]
    return pd.concat(parts, ignore_index=True)


def cost_to_accuracy(tables: Tables, target: float, price: float = 0.0) -> pd.DataFrame:
    """What each completed run had spent when its evaluation first reached `target` (top-1, 0 to 1).

    Columns, ancestors' part included: gpu_hours, cost at `price` a GPU-hour, hours (of the clock: device time over the
    devices of each stage), images; and reached. A run that never got there has reached False and no number: not
    reached is an answer. Between evaluations nothing is known, so the first of the run's own at or above the target
    counts, or its end where only its top-1 tells that it got there.
    """
    runs = tables.completed[tables.completed["top1"].notna()]
    own = tables.own_evaluations
    enough = own[own["top1"] >= target].sort_values("step", kind="stable")
    first = enough.drop_duplicates([*RUN, "protocol"])[[*RUN, "protocol", "step"]].rename(columns={"step": "at"})
    last = tables.metrics.groupby(RUN)["step"].max().rename("last").reset_index()
    table = runs.merge(first, on=[*RUN, "protocol"], how="left").merge(last, on=RUN, how="left")
    at_end = pd.Series(1.0, table.index).where(table["top1"] >= target)
    done = (table["at"] / table["last"]).clip(upper=1.0).fillna(at_end)
    table["gpu_hours"] = (table["total_gpu_seconds"] - table["gpu_seconds"] * (1 - done)) / 3600
    table["hours"] = _clock_hours(tables.runs, table) + table["gpu_seconds"] * done / table["devices"] / 3600
    table["images"] = table["total_images_seen"] - table["images_seen"] * (1 - done)
    table["cost"] = table["gpu_hours"] * price
    table["reached"] = table["at"].notna() | at_end.notna()
    keys = [*RUN, *ARM, "size", "seed", "protocol", "top1"]
    return table[[*keys, "reached", "gpu_hours", "cost", "hours", "images"]].reset_index(drop=True)


def _clock_hours(runs: pd.DataFrame, table: pd.DataFrame) -> Array:
    """Hours of the clock that the ancestors of each row took; nan where one of them is not there."""
    seconds = dict(
        zip(zip(runs["study"], runs["run"], strict=True), runs["gpu_seconds"] / runs["devices"], strict=True)
    )
    parents = dict(zip(zip(runs["study"], runs["run"], strict=True), runs["parent"], strict=True))

    def before(study: str, parent: object) -> float:
        if not isinstance(parent, str):
            return 0.0
        key = (study, parent)
        return float(seconds[key]) + before(study, parents[key]) if key in seconds else np.nan

    pairs = zip(table["study"], table["parent"], strict=True)
    return np.array([before(study, parent) / 3600 for study, parent in pairs], dtype=float)


def pareto_front(table: pd.DataFrame, cost: str, gain: str) -> pd.DataFrame:
    """The rows that no other beats in both: less `cost` and more `gain`, from cheap to dear."""
    ordered = table.dropna(subset=[cost, gain]).sort_values([cost, gain], ascending=[True, False], kind="stable")
    best = ordered[gain].cummax()
    return ordered[(ordered[gain] == best) & ~best.duplicated()].reset_index(drop=True)
