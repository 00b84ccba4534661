"""What `armscale bench step`, `scaling` and `gpu` wrote, as tables for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scaling.errors import UserError
from scaling.rundir import read_json

KINDS = ("step", "scaling")
CASE = ("strategy", "encoder", "size", "stage", "precision")
EFFICIENCY = ("kind", "strategy", "encoder", "size", "stage", "engine", "devices", "batch", "rate", "efficiency")
STEPS = ("device", *CASE, "engine", "micro_batch", "name", "step_seconds", "low", "high", "images_per_second", "mfu",
         "peak_memory_bytes", "scan_share", "error")  # fmt: skip


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
        reports += found
    return reports


def efficiencies(reports: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows of every scaling bench: `rate` is images per second and device, `batch` a device's if weak, else all's.

    One rank is always the engine `single`, the baseline of every engine of its kind, so each engine gets it as well.
    """
    rows = []
    for report in (report for report in reports if report["bench"] == "scaling"):
        case = {name: report["case"].get(name) for name in CASE}
        good = [row for row in report["results"] if "error" not in row]
        engines = sorted({row["engine"] for row in good if row["ranks"] > 1})
        for row in good:
            weak = row["kind"] == "weak"
            values = {"kind": row["kind"], "devices": row["ranks"], "rate": row["images_per_second_per_device"],
                      "batch": row["global_batch"] / (row["ranks"] if weak else 1),
                      "efficiency": row["efficiency"]}  # fmt: skip
            rows += [case | values | {"engine": name} for name in ([row["engine"]] if row["ranks"] > 1 else engines)]
    return pd.DataFrame(rows).reindex(columns=[*EFFICIENCY])


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
    return pd.DataFrame(rows).reindex(columns=[*STEPS])
