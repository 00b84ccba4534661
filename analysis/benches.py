"""What `armscale bench step`, `scaling` and `gpu` wrote, as tables for the report."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.throughput import COMPARED
from scaling.errors import UserError
from scaling.rundir import read_json

KINDS = ("step", "scaling")
CASE = ("strategy", "encoder", "size", "stage", "precision")
EFFICIENCY = ("kind", *COMPARED, "devices", "batch", "rate", "efficiency")
STEPS = ("device", *CASE, "engine", "micro_batch", "name", "step_seconds", "low", "high", "images_per_second", "mfu",
         "peak_memory_bytes", "scan_share", "error")  # fmt: skip
RATES = {"devices", "batch", "rate", "micro_batch", "step_seconds", "images_per_second"}
NUMBERS = RATES | {"efficiency", "low", "high", "mfu", "peak_memory_bytes", "scan_share"}


def read_benches(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The reports in these files, of `bench gpu` those of its section `steps`; UserError for a file that has none."""
    reports = []
    for path in paths:
        report = read_json(path) or {}
        found = [report]
        if report.get("bench") == "gpu":
            found = report.get("sections", {}).get("steps", {}).get("rows", [])
        if not found or any(
            part.get("bench") not in KINDS or not isinstance(part.get("results"), list) for part in found
        ):
            raise UserError(
                "bench",
                str(path),
                "a file of `armscale bench step` or `scaling`, or of `bench gpu` with its section steps",
            )
        _require_readable(path, found)
        reports += found
    return reports


def _require_readable(path: Path, reports: Sequence[dict[str, Any]]) -> None:
    """UserError where the rows of these reports are none that a bench writes."""
    try:
        for table in (efficiencies(reports), steps(reports)):
            rates = table[[name for name in table if name in RATES]]
            if not (rates.isna() | (rates > 0) & (rates < inf)).all(axis=None):
                raise ValueError(f"a number of {', '.join(map(str, rates))} is not above 0")
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError("bench", str(path), "a file as `armscale bench` writes it", why=why) from None


def efficiencies(reports: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows of every scaling bench: `rate` is images per second and device, `batch` a device's if weak, else all's.

    One rank is always the engine `single`, the baseline of every engine of its kind, so each engine gets it as well.
    """
    rows = []
    for report in (report for report in reports if report["bench"] == "scaling"):
        case = {name: report["case"].get(name) for name in CASE} | {
            "resolution": report.get("image_size"),
            "config.compile": report.get("compile"),
            "config.checkpointing": report["case"].get("checkpointing"),
        }
        good = [row for row in report["results"] if "error" not in row]
        engines = sorted({row["engine"] for row in good if row["ranks"] > 1})
        for row in good:
            weak = row["kind"] == "weak"
            values = {"kind": row["kind"], "device": row.get("device"), "devices": row["ranks"],
                      "rate": row["images_per_second_per_device"],
                      "batch": row["global_batch"] / (row["ranks"] if weak else 1),
                      "efficiency": row["efficiency"]}  # fmt: skip
            rows += [case | values | {"engine": name} for name in ([row["engine"]] if row["ranks"] > 1 else engines)]
    return _table(rows, EFFICIENCY)


def steps(reports: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows of every step bench, those that could not run with their `error`."""
    rows = []
    for report in (report for report in reports if report["bench"] == "step"):
        case = {name: report["case"].get(name) for name in (*CASE, "engine", "micro_batch")}
        for row in report["results"]:
            step, share = row.get("step") or {}, row.get("scan_share") or {}
            rows.append({**case, "device": report.get("device"), "name": row["name"], "error": row.get("error"),
                         "step_seconds": step.get("median"), "low": step.get("low"), "high": step.get("high"),
                         "images_per_second": row.get("images_per_second"), "mfu": row.get("mfu"),
                         "peak_memory_bytes": row.get("peak_memory_bytes"),
                         "scan_share": share.get("median")})  # fmt: skip
    return _table(rows, STEPS)


def _table(rows: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """The rows with these columns, numbers as numbers: one that a bench could not tell is nan."""
    return pd.DataFrame(rows).reindex(columns=[*columns]).astype({name: float for name in columns if name in NUMBERS})
