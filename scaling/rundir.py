"""Names and keys of the run folder, the only database (design: files). Standard library only.

<root>/<study>/study.yaml, runs.txt (ids of the runs that it asks for), tuning.json (trials and what was chosen),
               report/, tables/
<root>/<study>/<run>/config.yaml, environment.json, status.json, attempts/N, metrics.jsonl, evaluations.jsonl,
                     summary.json, checkpoints/step-00001000/, logs/, pictures/
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

DEFAULT_ROOT: Final = "runs"
STUDY: Final = "study.yaml"
ASKED: Final = "runs.txt"
TUNING: Final = "tuning.json"
REPORT: Final = "report"
TABLES: Final = "tables"
CONFIG: Final = "config.yaml"
ENVIRONMENT: Final = "environment.json"
STATUS: Final = "status.json"
ATTEMPTS: Final = "attempts"
METRICS: Final = "metrics.jsonl"
EVALUATIONS: Final = "evaluations.jsonl"
SUMMARY: Final = "summary.json"
CHECKPOINTS: Final = "checkpoints"
LOGS: Final = "logs"
PICTURES: Final = "pictures"
INFERENCE: Final = "inference.json"

STATES: Final = ("planned", "queued", "running", "stopped", "completed", "failed", "cancelled", "blocked")
"""The states of status.json."""

STATUS_KEYS: Final = ("state", "attempt", "job_id", "host", "heartbeat", "step", "error")

METRIC_KEYS: Final = (
    "time", "attempt", "stage", "step", "images_seen", "epoch", "loss", "lr", "grad_norm", "step_seconds",
    "data_seconds", "images_per_second", "tokens_per_second", "model_flops_per_image", "mfu", "memory_bytes",
    "devices", "nodes", "micro_batch", "skipped_steps",
)  # fmt: skip

EVALUATION_KEYS: Final = (
    "time", "attempt", "protocol", "dataset", "resolution", "weights", "top1", "top5", "loss", "images", "step",
)  # fmt: skip

PROTOCOLS: Final = ("finetune", "linear_probe", "knn", "pretrain_loss")

SUMMARY_KEYS: Final = (
    "strategy", "encoder", "size", "stage", "parent", "parameters", "encoder_parameters", "global_batch",
    "images_seen", "epochs", "schedule", "finished_schedule", "final_loss", "pretrain_loss", "top1", "top1_best",
    "protocol", "seed", "train_flops", "scan_flops", "gpu_seconds", "useful_gpu_seconds", "total_images_seen",
    "total_train_flops", "total_gpu_seconds", "device", "devices", "engine", "images_per_second_per_device", "mfu",
    "peak_memory_bytes",
)  # fmt: skip
"""Keys of summary.json; absent values are null. FLOPs are operations, two a multiply-accumulate."""


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None where the file is missing or torn (it is being written elsewhere)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a .jsonl file, and how many lines could not be read (a kill tears the last one)."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return [], 0
    objects, torn = [], 0
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            torn += 1
            continue
        if isinstance(value, dict):
            objects.append(value)
        else:
            torn += 1
    return objects, torn


def is_run(folder: Path) -> bool:
    """Only a folder with a config.yaml is a run."""
    return (folder / CONFIG).is_file()


def find_runs(path: Path) -> Iterator[Path]:
    """Run folders in RUNS, in name order: `path` is a root, a study folder or a run folder."""
    if is_run(path):
        yield path
        return
    for child in sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        if is_run(child):
            yield child
        elif (child / STUDY).is_file():
            yield from (run for run in sorted(child.iterdir()) if run.is_dir() and is_run(run))
