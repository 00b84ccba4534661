"""From run folders to tidy tables. Nothing but the folders is needed, not the machine that trained nor torch."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.foreign import collect_table
from analysis.runfolder import LOADER, SUPERSEDED, TRIAL, Columns, RunFolder, fingerprint, read_run
from analysis.tables import (
    EXCLUDED_COLUMNS,
    IDENTITY,
    NAMES,
    RUN_COLUMNS,
    SOURCE_COLUMNS,
    TEXT,
    Tables,
    frame,
    stored_tables,
    typed,
    write_tables,
)
from scaling.errors import UserError
from scaling.rundir import ASKED, CONFIG, EVALUATION_KEYS, METRIC_KEYS, METRICS, REPORT, STUDY, SUMMARY, TABLES, is_run

CELL_AXES = ("strategy", "encoder", "size", "seed")
CHUNK = 64

Place = tuple[Path, str]
"""A run folder and the name of its study."""


def collect_runs(root: Path | str, previous: Tables | None = None, workers: int = 1) -> Tables:
    """Reads every run under `root` (a root of studies, a study folder or a run folder).

    Runs whose files have not changed since `previous` was collected are taken from it.
    `workers` processes share the reading (each starts a Python, so it pays from hundreds of runs on).
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError("runs", str(root), "a folder of studies, a study folder, a run folder or a csv file")
    studies, places = find_places(root)
    if not studies and not places:
        raise UserError("runs", str(root), f"a folder with runs: a run has a {CONFIG}, a study a {STUDY}")
    left = {place for study in studies for place in _no_longer_asked(study, places)}
    sources = frame(
        ({"study": study, "run": folder.name, "folder": str(folder),
          "fingerprint": fingerprint(folder) + (SUPERSEDED if (folder, study) in left else "")}
         for folder, study in places),
        SOURCE_COLUMNS,
    )  # fmt: skip
    if previous is not None and previous.sources.equals(sources):
        kept, fresh = previous, []
    else:
        kept = _unchanged(previous, sources)
        read_before = set(zip(kept.sources["study"], kept.sources["run"], strict=True))
        fresh = [place for place in places if (place[1], place[0].name) not in read_before]
    read = zip(fresh, _read(fresh, workers), strict=True)
    tables = _join(kept, _tabulate([_superseded(run) if place in left else run for place, run in read], sources))
    missing = [cell for folder in studies for cell in missing_cells(folder, tables.runs)]
    return _finish(tables, missing, sources)


def update_tables(root: Path, folder: Path, workers: int = 1, mapping: Mapping[str, str] | None = None) -> Tables:
    """Collects `root` into the tables in `folder`: reads the runs and writes the tables that changed.

    `root` is as in collect_runs, or one table of another program (see foreign.collect_table) with its `mapping`.
    """
    previous = stored_tables(folder)
    if root.is_file():
        tables = collect_table(root, mapping)
    elif mapping:
        raise UserError("map", ", ".join(mapping), "nothing for run folders: only the columns of a table are mapped")
    else:
        tables = collect_runs(root, previous, workers)
    write_tables(tables, folder, previous)
    return tables


def find_places(root: Path) -> tuple[list[Path], list[Place]]:
    """Study folders, and every folder in or beside them that is a run or looks like the remains of one."""
    if is_run(root):
        return [], [(root, root.resolve().parent.name)]
    children = [child for child in sorted(root.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    studies = [root] if (root / STUDY).is_file() else [child for child in children if (child / STUDY).is_file()]
    places = [(folder, folder.parent.name) for study in studies for folder in _run_folders(study.resolve())]
    loose = [(child, root.resolve().name) for child in children if child not in studies and is_run(child)]
    return studies, places if studies == [root] else sorted({*places, *loose})


def _no_longer_asked(study: Path, places: list[Place]) -> list[Place]:
    """The runs of a study that its present version does not have; none where it was never launched."""
    try:
        asked = set((study / ASKED).read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError):
        return []
    return [place for place in places if place[0].parent == study.resolve() and place[0].name not in asked]


def _superseded(run: RunFolder) -> RunFolder:
    """What is known of a run that is no longer asked for: one with a result keeps it, another is not missed."""
    if not run.reason or run.row["state"] == TRIAL:
        return run
    reason = f"of an earlier version of {STUDY}, {run.reason}"
    return replace(run, row={**run.row, "state": SUPERSEDED}, reason=reason)


def missing_cells(study: Path, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Cells of the study's axes (strategy, encoder, size, seed) that have no run folder, or only a pretraining's.

    The latter only where another cell of the strategy has more. Trials of a tuning are no cell's result.
    """
    try:
        plan = yaml.load((study / STUDY).read_text(encoding="utf-8"), Loader=LOADER)
        axes = {name: list(values) for name, values in plan["axes"].items()}
        excludes = [rule for rule in plan.get("exclude") or [] if isinstance(rule, dict)]
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return []
    name, shared = study.resolve().name, [axis for axis in CELL_AXES if axis in axes]
    own = runs[(runs["study"] == name) & ~runs["state"].isin((TRIAL, SUPERSEDED))]
    present, beyond = _cells(own, shared), _cells(own[own["stage"] != "pretrain"], shared)
    going_on = set(own.loc[own["stage"] != "pretrain", "strategy"])
    missing: dict[tuple[str, ...], dict[str, Any]] = {}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        excluded = any(all(_matches(point.get(key), wanted) for key, wanted in rule.items()) for rule in excludes)
        cell = {axis: point[axis] for axis in shared}
        key = tuple(str(value) for value in cell.values())
        if excluded or key in beyond:
            continue
        if key not in present:
            missing[key] = {"study": name, **cell, "state": "missing", "reason": f"in {STUDY}, but has no run folder"}
        elif cell.get("strategy") in going_on:
            reason = "has a folder of its pretraining alone"
            missing[key] = {"study": name, **cell, "stage": "finetune", "state": "missing", "reason": reason}
    return list(missing.values())


def _cells(runs: pd.DataFrame, axes: list[str]) -> set[tuple[str, ...]]:
    """The places of these runs on the axes."""
    return {tuple(str(value).removesuffix(".0") for value in row) for row in runs[axes].itertuples(index=False)}


def _run_folders(study: Path) -> Iterator[Path]:
    for child in sorted(study.iterdir()):
        if child.name.startswith(".") or child.name in (REPORT, TABLES) or not child.is_dir():
            continue
        if any((child / name).is_file() for name in (CONFIG, METRICS, SUMMARY)):
            yield child


def _matches(value: object, wanted: object) -> bool:
    return value == wanted or (isinstance(wanted, list) and value in wanted)


def _unchanged(known: Tables | None, sources: pd.DataFrame) -> Tables:
    """The part of the earlier tables whose run folders are still the same."""
    if known is None:
        return _tabulate([], sources)
    now = set(sources.itertuples(index=False, name=None))
    same = [row for row in known.sources.itertuples(index=False, name=None) if row in now]
    wanted = pd.MultiIndex.from_tuples([row[:2] for row in same], names=IDENTITY) if same else None

    def part(table: pd.DataFrame) -> pd.DataFrame:
        if wanted is None:
            return table.iloc[:0]
        return table[pd.MultiIndex.from_frame(table[list(IDENTITY)]).isin(wanted)]

    return Tables(**{name: part(getattr(known, name)) for name in NAMES})


def _read(places: list[Place], workers: int) -> list[RunFolder]:
    if workers == 1 or len(places) <= CHUNK:
        return [read_run(folder, study) for folder, study in places]
    folders, studies = zip(*places, strict=True)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(read_run, folders, studies, chunksize=CHUNK))


def _tabulate(read: list[RunFolder], sources: pd.DataFrame) -> Tables:
    return Tables(
        runs=frame((run.row for run in read), RUN_COLUMNS),
        metrics=_stack(read, [run.metrics for run in read], METRIC_KEYS),
        evaluations=_stack(read, [run.evaluations for run in read], EVALUATION_KEYS),
        excluded=frame(({**run.row, "reason": run.reason} for run in read if run.reason), EXCLUDED_COLUMNS)[
            list(EXCLUDED_COLUMNS)
        ],
        sources=sources.iloc[:0],
    )


def _stack(read: list[RunFolder], columns: list[Columns], keys: tuple[str, ...]) -> pd.DataFrame:
    """The records of all runs under each other, each with its study and run."""
    counts = [len(own.get("step", ())) for own in columns]
    table: dict[str, Any] = {
        name: np.repeat(np.array([run.row[name] for run in read], dtype=object), counts) for name in IDENTITY
    }
    for key in keys:
        parts = [own[key] for own in columns if own]
        table[key] = list(itertools.chain(*parts)) if key in TEXT else np.concatenate([np.empty(0), *parts])
    return typed(pd.DataFrame(table))


def _join(first: Tables, second: Tables) -> Tables:
    """Both, row by row; a table without rows adds no columns and no types."""

    def both(name: str) -> pd.DataFrame:
        parts = [part for part in (getattr(first, name), getattr(second, name)) if len(part)]
        return pd.concat(parts, ignore_index=True) if parts else getattr(first, name)

    return Tables(**{name: both(name) for name in NAMES})


def _finish(tables: Tables, missing: list[dict[str, Any]], sources: pd.DataFrame) -> Tables:
    """The missing cells added, every table in one order whatever was read when."""
    excluded = tables.excluded[tables.excluded["state"] != "missing"]
    if missing:
        cells = frame(missing, EXCLUDED_COLUMNS)
        excluded = pd.concat([excluded, cells], ignore_index=True) if len(excluded) else cells
    return Tables(
        runs=_sorted(tables.runs),
        metrics=_sorted(tables.metrics, "step"),
        evaluations=_sorted(tables.evaluations, "step"),
        excluded=_sorted(excluded, "strategy", "encoder", "size", "seed"),
        sources=sources,
    )


def _sorted(table: pd.DataFrame, *more: str) -> pd.DataFrame:
    return table.sort_values([*IDENTITY, *more], kind="stable", ignore_index=True, na_position="last")
