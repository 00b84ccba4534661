"""Tables that others wrote: csv or parquet files of any columns, mapped to our names, to fit or to report on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa

from analysis.checks import RUN_STATES, as_numbers, fractions
from analysis.runfolder import UNKNOWN
from analysis.style import compact
from analysis.tables import (
    EXCLUDED_COLUMNS,
    IDENTITY,
    RUN_COLUMNS,
    SOURCE_COLUMNS,
    Tables,
    frame,
)
from scaling.errors import UserError
from scaling.rundir import EVALUATION_KEYS, METRIC_KEYS

RESULTS = ("top1", "top1_error", "final_loss", "pretrain_loss")
"""A row with none of these says nothing of how well a run went."""
TOTALS = ("train_flops", "images_seen", "gpu_seconds")
"""Each has a total_ beside it that counts ancestors; a table that has one of the two means it by both."""


def parse_mapping(given: Iterable[str]) -> dict[str, str]:
    """{name: column or expression} of texts NAME=COLUMN and NAME=EXPR."""
    mapping: dict[str, str] = {}
    for text in given:
        name, equals, expression = text.partition("=")
        if not (name.strip() and equals and expression.strip()):
            raise UserError("map", text, "NAME=COLUMN, or NAME=EXPR as in 'samples=`Training FLOP` / (6 * parameters)'")
        name, expression = name.strip(), expression.strip()
        if mapping.setdefault(name, expression) != expression:
            raise UserError("map", text, "one --map a name", why=f"{name} is {mapping[name]} by another")
    return mapping


def read_table(path: Path, mapping: Mapping[str, str] | None = None) -> pd.DataFrame:
    """One csv or parquet table with the columns of `mapping` added, in its order.

    `mapping` names each new column and says what stands in it: the name of a column, or a pandas expression over the
    columns (those added before, too; names with spaces between backticks). A name that is there already is replaced.
    """
    if path.suffix not in (".csv", ".parquet") or not path.is_file():
        raise UserError("table", str(path), "a file that exists and ends in .csv or .parquet")
    try:
        table = pd.read_csv(path, skipinitialspace=True) if path.suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, pa.ArrowException) as error:  # pandas' parser errors and a wrong encoding are ValueErrors
        why = str(error).splitlines()[0]
        raise UserError("table", str(path), f"a {path.suffix[1:]} file with a header and rows", why) from error
    table.columns = [str(name).strip() for name in table.columns]
    if table.empty:
        raise UserError("table", str(path), "a table with rows", why="it has none")
    for name, expression in (mapping or {}).items():
        table[name] = table[expression] if expression in table else _evaluate(table, expression)
    return table


def _evaluate(table: pd.DataFrame, expression: str) -> pd.Series:
    try:
        found = table.eval(expression, engine="python", local_dict={}, global_dict={})
        if isinstance(found, pd.DataFrame):
            raise ValueError("it assigns")
    except Exception as error:
        valid = f"one of the columns ({', '.join(table.columns)}) or a pandas expression over them"
        raise UserError("map", expression, valid, why=str(error).splitlines()[0]) from error
    return found if isinstance(found, pd.Series) else pd.Series(found, table.index)


def collect_table(path: Path, mapping: Mapping[str, str] | None = None) -> Tables:
    """The table as if its rows had been collected from run folders, so that it can be reported on.

    A row needs one of RESULTS. What is not there, as a column or in a row, is filled in with the least that it can
    mean: the study is the file, a run its row, the size its parameters, the strategy `all`, the stage and protocol of
    an accuracy `finetune`.
    """
    table = read_table(path, mapping)
    if not set(RESULTS) & set(table):
        raise UserError("table", str(path), f"a column {', '.join(RESULTS)}: --map NAME=COLUMN names it",
                        why=f"it has {', '.join(table.columns)}")  # fmt: skip
    for name in [name for name in (*RESULTS, "parameters") if name in table and table[name].notna().any()]:
        table[name] = as_numbers(table[name], "map")
    for name, other in (("top1", "top1_error"), ("top1_error", "top1")):
        if other in table:
            fractions(table[other])
            table[name] = table[name] if name in table else 1 - table[other]
    if "state" in table and not set(table["state"].dropna()) <= RUN_STATES:  # in words of another program
        table = table.drop(columns="state")
    if "dataset" in table and "data" not in table:
        table["data"] = table["dataset"]
    for name in TOTALS:
        for one, other in ((name, f"total_{name}"), (f"total_{name}", name)):
            if other in table and one not in table:
                table[one] = table[other]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False, name=None)]
    filled = (
        plain | {name: value for name, value in row.items() if name not in plain or not pd.isna(value)}
        for plain, row in zip(_least(table, path.stem), rows, strict=True)
    )
    runs = frame(filled, RUN_COLUMNS)
    without = runs[list(RESULTS)].isna().all(axis=1)
    runs["state"] = runs["state"].where(~without, UNKNOWN)
    out = runs[runs["state"] != "completed"]
    excluded = out.assign(
        reason=(out["state"] + ", not completed").where(~without, f"its row has no {', '.join(RESULTS)}")
    )
    nothing: list[dict[str, object]] = []
    return Tables(
        runs=runs,
        metrics=frame(nothing, (*IDENTITY, *METRIC_KEYS)),
        evaluations=frame(nothing, (*IDENTITY, *EVALUATION_KEYS)),
        excluded=excluded[list(EXCLUDED_COLUMNS)].reset_index(drop=True),
        sources=frame(nothing, SOURCE_COLUMNS),
    )


def _least(table: pd.DataFrame, study: str) -> Iterable[dict[str, object]]:
    """For each row, what the report groups by, as far as the table does not say it."""
    accuracy = bool({"top1", "top1_error"} & set(table))
    sizes = [compact(value) for value in table["parameters"]] if "parameters" in table else ["unknown"] * len(table)
    digits = len(str(len(table)))
    for row, size in enumerate(sizes, 1):
        yield {"study": study, "run": f"row-{row:0{digits}}", "state": "completed", "strategy": "all", "size": size,
               "encoder": "unknown", "stage": "finetune" if accuracy else "pretrain",
               "protocol": "finetune" if accuracy else None, "lost_records": 0, "torn_lines": 0}  # fmt: skip
