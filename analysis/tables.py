"""The collected tables and how they are stored: parquet for programs, csv for people."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from scaling.errors import UserError
from scaling.files import atomic_write
from scaling.rundir import EVALUATION_KEYS, METRIC_KEYS, SUMMARY_KEYS

IDENTITY = ("study", "run")
RUN_COLUMNS = (
    *IDENTITY, "state", "attempt", "step", *SUMMARY_KEYS, "top1_error", "precision", "data",
    "resolution", "lost_records", "torn_lines", "notes",
)  # fmt: skip
EXCLUDED_COLUMNS = (*IDENTITY, "strategy", "encoder", "size", "stage", "seed", "state", "reason")
SOURCE_COLUMNS = (*IDENTITY, "folder", "fingerprint")
TEXT = frozenset(
    (*IDENTITY, "state", "strategy", "encoder", "size", "stage", "parent", "schedule", "protocol", "device", "engine",
     "precision", "data", "notes", "reason", "dataset", "weights", "folder", "fingerprint")
)  # fmt: skip

LARGEST = 1e100
"""No run has counted so far; beyond it means, margins of axes and squares run over."""

VARIANTS = "imagenet-"
"""How the names of ImageNet's other test sets begin (V2, A, R, Sketch, ReaL)."""


@dataclass(frozen=True)
class Tables:
    """What stands in a set of run folders.

    runs: one row a run folder, finished or not (`state` says which), the keys of summary.json, and every field of its
    config.yaml as `config.<field>`. metrics, evaluations: one row a record that counts, lost work taken out.
    excluded: runs, folders and cells of the study that no curve may use, each with its reason.
    sources: the folder that each run was read from and the fingerprint of its files, for the next collection.
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame
    evaluations: pd.DataFrame
    excluded: pd.DataFrame
    sources: pd.DataFrame

    @property
    def completed(self) -> pd.DataFrame:
        """The runs that curves and fits may use."""
        return self.runs[self.runs["state"] == "completed"]

    @property
    def own_evaluations(self) -> pd.DataFrame:
        """The evaluations on each run's own test split, of the weights that its top1 is of.

        Those are the averaged weights wherever a run has them, as in summary.json.
        """
        own = self.evaluations[~self.evaluations["dataset"].astype(str).str.startswith(VARIANTS)]
        averaged = own["weights"] == "ema"
        return own[averaged | ~averaged.groupby([own[name] for name in IDENTITY]).transform("any").astype(bool)]


NAMES = tuple(field.name for field in fields(Tables))


def frame(rows: Iterable[Mapping[str, object]], columns: Iterable[str]) -> pd.DataFrame:
    """A table with exactly `columns` first, in that order, then what else the rows bring, in name order."""
    table = pd.DataFrame(list(rows))
    columns = list(columns)
    extra = sorted(set(table.columns) - set(columns))
    return typed(table.reindex(columns=[*columns, *extra]))


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Text as strings, numbers as numbers: one type a column, as parquet needs, whatever single files hold."""
    converted = {}
    for name in table.columns:
        column = table[name]
        if name in TEXT:
            converted[name] = column.map(_text).astype("str").where(column.notna(), None)
        elif name in RUN_COLUMNS or name in METRIC_KEYS or name in EVALUATION_KEYS:
            converted[name] = _numbers(column)
        else:
            converted[name] = _settings(column)
    return pd.DataFrame(converted, index=table.index)


def write_tables(tables: Tables, folder: Path, previous: Tables | None = None) -> None:
    """Writes <name>.parquet and <name>.csv of every table; the same tables give the same bytes.

    Tables equal to those in `previous`, read from the same folder, are left as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if previous is not None and getattr(tables, name).equals(getattr(previous, name)):
            continue
        table = pa.Table.from_pandas(getattr(tables, name), preserve_index=False).replace_schema_metadata(None)
        with atomic_write(folder / f"{name}.parquet") as file:
            pyarrow.parquet.write_table(table, file, compression="zstd")
        text = io.BytesIO()
        pyarrow.csv.write_csv(table, text)
        with atomic_write(folder / f"{name}.csv") as file:
            file.write(text.getvalue())


def read_tables(folder: Path | str) -> Tables:
    """The tables in a folder that `collect` wrote."""
    folder = Path(folder)
    missing = [f"{name}.parquet" for name in NAMES if not (folder / f"{name}.parquet").is_file()]
    if missing:
        raise UserError("folder", str(folder), "a study folder, or a folder that `armscale collect` wrote",
                        why=f"it has no {missing[0]}")  # fmt: skip
    tables = _stored(folder)
    lacking = [name for name in RUN_COLUMNS if name not in tables.runs]
    if lacking:
        raise UserError("folder", str(folder), "tables that this version of `armscale collect` wrote: collect again",
                        why=f"the table of runs has no column {lacking[0]}")  # fmt: skip
    return tables


def stored_tables(folder: Path) -> Tables | None:
    """The tables in `folder`, or None where a file of them is missing or another version wrote them."""
    if not all((folder / f"{name}.{kind}").is_file() for name in NAMES for kind in ("csv", "parquet")):
        return None
    tables = _stored(folder)
    return tables if set(RUN_COLUMNS) <= set(tables.runs) else None


def _stored(folder: Path) -> Tables:
    return Tables(**{name: pd.read_parquet(folder / f"{name}.parquet") for name in NAMES})


def _numbers(column: pd.Series) -> pd.Series:
    """Numbers that can be reckoned with: a rate over no time or a loss that ran away is none."""
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    return numbers.where(numbers.abs() < LARGEST)


def _text(value: object) -> object:
    return value if value is None or isinstance(value, str) else str(value)


def _settings(column: pd.Series) -> pd.Series:
    """A config field: numeric or boolean where every run agrees on that, text otherwise."""
    present = column.dropna()
    if not present.empty and all(isinstance(value, bool) for value in present):
        return column.astype("boolean")
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return column.astype("float64")
    return column.map(_text).astype("str").where(column.notna(), None)
