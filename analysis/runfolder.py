"""Reads one run folder: tolerant of what is missing or torn, exact about which records count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from analysis.tables import TEXT
from scaling.rundir import (
    CONFIG,
    EVALUATION_KEYS,
    EVALUATIONS,
    METRIC_KEYS,
    METRICS,
    STATES,
    STATUS,
    SUMMARY,
    SUMMARY_KEYS,
    read_json,
    read_lines,
)

SOURCES = (CONFIG, STATUS, SUMMARY, METRICS, EVALUATIONS)
CONFIG_IDENTITY = ("strategy", "encoder", "size", "stage", "parent", "seed", "engine")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""For what runs and studies have written themselves: several times as fast. Nothing here imports the trainer's own."""

TRIAL = "trial"
"""State of a completed trial of the tuning, which no curve may use: its accuracy is on held-out training images."""
SUPERSEDED = "superseded"
"""State of a run that is not completed and that the study file, changed since, no longer asks for."""
UNKNOWN, UNREADABLE = "unknown", "unreadable"
OTHER_STATES = (TRIAL, SUPERSEDED, UNKNOWN, UNREADABLE)
"""States of collected runs beside those of status.json."""

Record = dict[str, Any]
Columns = dict[str, list[str | None] | NDArray[np.float64]]


@dataclass(frozen=True)
class RunFolder:
    """One run folder as read: `row` for the table of runs, the records that count, and why it is left out, if it is."""

    row: Record
    metrics: Columns = field(default_factory=dict)
    evaluations: Columns = field(default_factory=dict)
    reason: str = ""


def fingerprint(folder: Path) -> str:
    """Changes whenever a file that read_run reads is replaced, appended to or removed."""
    parts = []
    for name in SOURCES:
        try:
            stat = (folder / name).stat()
            parts.append(f"{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}")
        except FileNotFoundError:
            parts.append("-")
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:24]


def read_run(folder: Path, study: str) -> RunFolder:
    """Everything that `folder` says about its run; never raises for what another process left there."""
    identity = {"study": study, "run": folder.name}
    config, problem = _read_config(folder / CONFIG)
    if config is None:
        return RunFolder({**identity, "state": UNREADABLE}, reason=problem)
    status, summary = read_json(folder / STATUS), read_json(folder / SUMMARY)
    metrics, torn_metrics = read_lines(folder / METRICS)
    evaluations, torn_evaluations = read_lines(folder / EVALUATIONS)
    metrics, lost = keep_metrics(metrics)
    evaluations = keep_evaluations(evaluations)
    state, reason = judge(status, summary)
    if state == "completed" and _held_out(config):
        state, reason = TRIAL, "a trial of the tuning: evaluated on held-out training images, not on the test split"
    top1 = (summary or {}).get("top1")
    if state == "completed" and not _is_fraction(top1):
        state, reason = UNKNOWN, f"top1 in {SUMMARY} is {top1!r}, not a fraction from 0 to 1"
    notes = [
        f"{count} torn line{'s' if count > 1 else ''} in {name}"
        for name, count in ((METRICS, torn_metrics), (EVALUATIONS, torn_evaluations))
        if count
    ]
    if lost:
        notes.append(f"{lost} records of lost work left out")
    if status is None:
        notes.append(f"{STATUS} is missing or torn")
    if summary and summary.get("finished_schedule") is False:
        notes.append("the learning-rate schedule was not finished")
    fields = dict(flatten(config))
    row = {
        **{f"config.{name}": value for name, value in fields.items()},
        **{name: config.get(name) for name in (*CONFIG_IDENTITY, "precision")},
        "data": _data_name(config.get("data")),
        "resolution": fields.get("train.image_size"),
        "global_batch": fields.get("train.global_batch"),
        **{key: value for key in SUMMARY_KEYS if (value := (summary or {}).get(key)) is not None},
        **identity,
        "state": state,
        "attempt": (status or {}).get("attempt"),
        "step": (status or {}).get("step"),
        "lost_records": lost,
        "torn_lines": torn_metrics + torn_evaluations,
        "notes": "; ".join(notes) or None,
    }
    row["top1_error"] = 1 - top1 if isinstance(top1, int | float) else None
    return RunFolder(row, _columns(metrics, METRIC_KEYS), _columns(evaluations, EVALUATION_KEYS), reason)


def judge(status: Record | None, summary: Record | None) -> tuple[str, str]:
    """The state of a run and, unless it may stand in curves, the reason why not.

    A summary decides, as it does for the launchers: the trainer writes it before the last status, and never takes up a
    run that has one.
    """
    state = str((status or {}).get("state") or UNKNOWN)
    if state not in (*STATES, UNKNOWN):
        return UNKNOWN, f"{STATUS} has the unknown state {state!r}"
    if summary:
        return "completed", ""
    if state == "completed":
        return UNKNOWN, f"completed, but {SUMMARY} is missing or torn"
    if state == UNKNOWN:
        return state, f"neither {STATUS} nor {SUMMARY} can be read"
    error = (status or {}).get("error")
    return state, f"{state}: {error}" if error else f"{state}, not completed"


def keep_metrics(records: list[Record]) -> tuple[list[Record], int]:
    """The records that count, in step order, and how many are lost work.

    An attempt that resumes at step s redoes everything from s on, so what lower attempts wrote at s or later is lost,
    even at steps that the higher attempt did not log. Within one attempt the later line stands.
    """
    usable = [record for record in records if isinstance(step := record.get("step"), int | float) and isfinite(step)]
    kept: dict[float, Record] = {}
    horizon = float("inf")
    for attempt in sorted({_attempt(record) for record in usable}, reverse=True):
        own = {record["step"]: record for record in usable if _attempt(record) == attempt}
        kept.update((step, record) for step, record in own.items() if step < horizon)
        horizon = min(horizon, *own)
    return [kept[step] for step in sorted(kept)], len(usable) - len(kept)


def keep_evaluations(records: list[Record]) -> list[Record]:
    """One record for each step, protocol, data set, resolution and weights: the last of the highest attempt."""
    kept: dict[tuple[object, ...], Record] = {}
    for record in records:
        key = tuple(str(record.get(name)) for name in ("step", "protocol", "dataset", "resolution", "weights"))
        if key not in kept or _attempt(record) >= _attempt(kept[key]):
            kept[key] = record
    return list(kept.values())


def flatten(value: object, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names and leaves of a nested mapping; lists become JSON."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list | dict):
        yield prefix, json.dumps(value, default=str)
    else:
        yield prefix, value


def _read_config(path: Path) -> tuple[Record | None, str]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except FileNotFoundError:
        return None, f"the folder has no {CONFIG}"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, f"{CONFIG} cannot be read: {str(error).splitlines()[0]}"
    return (config, "") if isinstance(config, dict) else (None, f"{CONFIG} holds no fields")


def _held_out(config: Record) -> bool:
    data = config.get("data")
    return isinstance(data, dict) and bool(data.get("held_out"))


def _is_fraction(top1: object) -> bool:
    return top1 is None or (isinstance(top1, int | float) and 0 <= top1 <= 1)


def _data_name(data: object) -> object:
    """The data set's name, whether config.yaml has it as text or as a mapping."""
    if isinstance(data, dict):
        return next((data[key] for key in ("name", "dataset", "source", "shards", "path") if data.get(key)), None)
    return data


def _attempt(record: Record) -> float:
    attempt = record.get("attempt")
    return attempt if isinstance(attempt, int | float) else 0


def _columns(records: list[Record], keys: Iterable[str]) -> Columns:
    """The records by column, small to send between processes: numbers as an array (nan if absent), text as a list."""
    columns: Columns = {}
    for key in keys:
        values = [record.get(key) for record in records]
        if key in TEXT:
            columns[key] = [None if value is None else str(value) for value in values]
        else:
            columns[key] = np.array(
                [value if isinstance(value, int | float) else np.nan for value in values], dtype=float
            )
    return columns
