"""What a fit refuses, and what it warns of: clean numbers only where the data can carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.arms import several
from analysis.intervals import Estimate, Units, average_units
from analysis.laws import Array, Law, line
from analysis.runfolder import OTHER_STATES
from analysis.solve import Problem
from scaling.errors import UserError
from scaling.rundir import STATES

ACCURACIES = ("top1", "top5", "top1_best", "top1_error")
RUN_STATES = {*STATES, *OTHER_STATES}
MEASURED = ("protocol", "resolution", "data", "dataset")
"""What accuracies in one fit must share; `data` is the data set in the table of runs, `dataset` in evaluations."""
LOSSES = ("loss", "final_loss", "pretrain_loss")
BARELY_TOLD_APART = 1e12
ONE_DEPENDS_ON_OTHER = 0.999
"""Correlation of log N and log D from which on their exponents cannot be told apart."""
FOLLOWS = 0.5
"""Where every N has one D alone: deviation of log D from its line over log N below which D says nothing of its own."""


def options(delta: float, bootstrap: int, resample_by: str | None, frame: pd.DataFrame) -> None:
    """Refuses options that mean nothing."""
    if not delta > 0:
        raise UserError("delta", delta, "numbers above 0 (inf gives least squares)")
    if bootstrap < 0:
        raise UserError("bootstrap", bootstrap, "a number of draws, 0 for none")
    if resample_by is not None:
        column(frame, "resample-by", resample_by)
        if not bootstrap:
            raise UserError("resample-by", resample_by, "together with --bootstrap alone")


def column(frame: pd.DataFrame, option: str, name: str) -> None:
    """Refuses a column that the table does not have."""
    if name not in frame:
        raise UserError(option, name, sorted(str(known) for known in frame.columns), why="the table has no such column")


def query(frame: pd.DataFrame, option: str, expression: str) -> pd.DataFrame:
    """The rows that a pandas query selects."""
    try:
        chosen = frame.query(expression, engine="python", local_dict={}, global_dict={})
    except Exception as error:
        raise UserError(option, expression, "a pandas query over the table's columns, as in 'parameters > 1e6'",
                        why=str(error).splitlines()[0]) from error  # fmt: skip
    assert isinstance(chosen, pd.DataFrame)
    return chosen


def select(
    frame: pd.DataFrame, law: str, variables: Sequence[str], x: Sequence[str], y: str, exclude: str | None, log_x: bool
) -> tuple[pd.DataFrame, int, list[str]]:
    """The rows to use, how many were taken out, and what to say about it."""
    if len(x) != len(variables):
        raise UserError("x", ",".join(x), f"{len(variables)} columns ({', '.join(variables)}) for the law {law}")
    numbers = {}
    for option, name in (*(("x", name) for name in x), ("y", y)):
        column(frame, option, name)
        numbers[name] = as_numbers(frame[name], option)
    table, warnings = frame.assign(**numbers).reset_index(drop=True), []
    if exclude:
        table = table.drop(query(table, "exclude", exclude).index)
    if "state" in table and set(table["state"].dropna()) <= RUN_STATES:
        unfinished = table["state"] != "completed"
        if unfinished.any():
            warnings.append(f"{int(unfinished.sum())} rows of runs that are not completed were left out")
        table = table[~unfinished]
    bad = ~np.isfinite(table[[*x, y]].to_numpy(dtype=float)).all(axis=1)
    if bad.any():
        warnings.append(f"{int(bad.sum())} rows without a number in {', '.join([*x, y])} were left out")
    table = table[~bad]
    if table.empty:
        raise UserError("table", "no row to fit", f"rows with numbers in {', '.join([*x, y])}", "; ".join(warnings))
    for name in (*(x if log_x else ()), y):
        if (table[name] <= 0).any():
            raise UserError(name, float(table[name].min()), "numbers above 0, as the fit is in logarithms")
    for name in {*x, y} & set(ACCURACIES):
        fractions(table[name])
    _refuse_mixtures(table, y)
    return table, len(frame) - len(table), warnings


def as_numbers(column: pd.Series, option: str) -> pd.Series:
    """The column as numbers: cells that are none become nan; refused where no cell is one."""
    found = pd.to_numeric(column, errors="coerce").astype("float64")
    if found.notna().any():
        return found
    example = next(iter(column.dropna()), "nothing at all")
    raise UserError(option, column.name, "a column of numbers", why=f"it holds {example!r}")


def fractions(column: pd.Series) -> None:
    """Refuses accuracies and errors that are no fractions, as those in per cent."""
    if not column.dropna().between(0, 1).all():
        way = f"--map '{column.name}={column.name} / 100'" if column.max() <= 100 else "leave such rows out"
        raise UserError(str(column.name), float(column.max()), "fractions from 0 to 1", why=f"if per cent: {way}")


def _refuse_mixtures(table: pd.DataFrame, y: str) -> None:
    """Numbers that are different quantities never stand in one fit."""
    if y in ACCURACIES:
        for name in MEASURED:
            if several(table, name):
                raise UserError("y", y, f"rows of one {name}: use --group or --exclude",
                                why=f"mixed: {', '.join(sorted(map(str, table[name].dropna().unique())))}")  # fmt: skip
    if y in LOSSES and {"strategy", "stage"} <= set(table):
        objectives = table["strategy"].where(table["stage"] == "pretrain", "classification").unique()
        if len(objectives) > 1:
            raise UserError("y", y, "losses of one objective: use --group or --exclude",
                            why=f"mixed: {', '.join(sorted(map(str, objectives)))}")  # fmt: skip


def enough(table: pd.DataFrame, law: Law, x: Sequence[str]) -> None:
    """Refuses tables that cannot determine the law."""
    if len(x) == 2:
        first, second = np.log(table[x[0]].to_numpy(dtype=float)), np.log(table[x[1]].to_numpy(dtype=float))
        single = table.groupby(x[0])[x[1]].nunique().max() == 1
        start, slope = line(first, second)
        if single and np.std(second - start - slope * first) < FOLLOWS:
            raise UserError(x[1], "a single value for each value of " + x[0], f"several {x[1]} for each {x[0]}",
                            why="the two exponents cannot be told apart")  # fmt: skip
        if min(table[x[0]].nunique(), table[x[1]].nunique()) < 3:
            raise UserError(",".join(x), "fewer than three values of one", "three or more distinct values of each")
        if abs(np.corrcoef(first, second)[0, 1]) > ONE_DEPENDS_ON_OTHER:
            raise UserError(x[1], f"almost a function of {x[0]}", f"values that vary at the same {x[0]}")
    distinct = len(table[list(x)].drop_duplicates())
    if distinct <= law.parameters:
        raise UserError("points", distinct, f"at least {law.parameters + 1} distinct x for {law.name}",
                        why=f"it has {law.parameters} parameters")  # fmt: skip


def warn_search(tried: int, agreeing: int) -> list[str]:
    """What the search for the minimum says about the minimum."""
    if tried > 1 and agreeing < max(2, tried // 5):
        return [f"only {agreeing} of {tried} starts reach the best minimum: the parameters may not be the best"]
    return []


def warn_errors(
    errors: Mapping[str, float | None], condition: float, residual: Array, delta: float, parameters: int
) -> list[str]:
    """What the surroundings of the minimum say about standard errors: the Hessian knows only points within delta."""
    warnings, inside = [], int((np.abs(residual) <= delta).sum())
    if None in errors.values():
        reason = "the Hessian at the minimum is singular or rests on too few points inside delta"
        warnings.append(f"no standard errors: {reason}")
    elif inside < 2 * parameters and inside < len(residual):
        within = f"{inside} of {len(residual)} points within delta"
        warnings.append(f"standard errors rest on the {within}: trust the intervals, or choose a larger delta")
    if condition > BARELY_TOLD_APART:
        warnings.append(f"parameters are barely told apart (condition number {condition:.1e})")
    return warnings


def warn_data(
    law: Law, problem: Problem, units: Units | None, parameters: Mapping[str, Estimate], x: Sequence[str], y: str
) -> list[str]:
    """What the points say about the law: how few, how narrow, how far from monotone, and whether they show a floor."""
    warnings = []
    if units is not None and units.freedom < 3:
        distinct = f"{units.freedom + law.parameters:.0f} distinct x for {law.parameters} parameters"
        warnings.append(f"{distinct}: intervals are wide")
    for name in {"floor", "E"} & set(parameters):
        estimate, smallest = parameters[name], float(np.exp(problem.log_y.min()))
        low = estimate.interval_95[0] if estimate.interval_95 else 0.0
        if min(estimate.value, low) < 1e-2 * smallest:
            warnings.append(f"the {name} is not identified: the data do not exclude zero")
    if len(x) == 1 and law.log_x:
        spread = float(np.exp(np.ptp(problem.x[:, 0])))
        if spread < 4:
            warnings.append(f"{x[0]} spans only a factor of {spread:.2g}")
        _, means = average_units(problem.x, problem.log_y)
        rising, steps = int((np.diff(means) > 0).sum()), len(means) - 1
        if 0 < rising < steps:
            against = min(rising, steps - rising)
            warnings.append(f"{y} is not monotone in {x[0]}: {against} of {steps} steps go the other way")
    return warnings
