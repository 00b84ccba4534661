"""Writes run folders as the trainer writes them, for tests that must not train."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import yaml

from scaling.rundir import (
    CONFIG,
    EVALUATION_KEYS,
    EVALUATIONS,
    METRIC_KEYS,
    METRICS,
    STATUS,
    STATUS_KEYS,
    STUDY,
    SUMMARY,
    SUMMARY_KEYS,
)

WIDTH = {"pico": 64, "nano": 96, "micro": 128, "tiny": 192, "small": 384}
ERROR = {"ar": (0.05, -0.30), "mae": (0.06, -0.27), "supervised": (0.08, -0.25), "scratch": (0.12, -0.20)}
"""Floor and exponent over parameters of each strategy's error."""
STAGES = {"ar": ("pretrain", "finetune"), "mae": ("pretrain", "finetune")}
DEPTH, TOKENS, STEPS, BATCH = 6, 64, 40, 256


def write_study(
    root: Path,
    name: str = "small",
    strategies: tuple[str, ...] = ("ar", "mae", "supervised", "scratch"),
    sizes: tuple[str, ...] = ("pico", "nano", "micro"),
    seeds: tuple[int, ...] = (0,),
    lengths: tuple[int, ...] = (1,),
) -> Path:
    """A finished study under `root`; with several `lengths`, each run is made as many times as long."""
    study = root / name
    study.mkdir(parents=True)
    axes: dict[str, list[Any]] = {"strategy": list(strategies), "encoder": ["mamba"], "size": list(sizes),
                                  "seed": list(seeds)}  # fmt: skip
    if len(lengths) > 1:
        axes["train.images"] = [length * STEPS * BATCH for length in lengths]
    (study / STUDY).write_text(yaml.safe_dump({"name": name, "purpose": "accuracy", "axes": axes}))
    for strategy, size, seed, length in itertools.product(strategies, sizes, seeds, lengths):
        parent = None
        for stage in STAGES.get(strategy, ("finetune",)):
            parent = write_run(study, strategy, size, stage, seed, parent, length=length).name
    return study


def write_run(
    study: Path,
    strategy: str = "ar",
    size: str = "pico",
    stage: str = "finetune",
    seed: int = 0,
    parent: str | None = None,
    state: str = "completed",
    length: int = 1,
) -> Path:
    """One run folder in `state`; only a completed one has a summary."""
    digest = hashlib.sha256(f"{strategy} {size} {stage} {seed} {length}".encode()).hexdigest()[:8]
    folder = study / f"{strategy}-mamba-{size}-{stage}-s{seed}-{digest}"
    folder.mkdir(parents=True)
    config = {
        "schema": 1, "study": study.name, "run": folder.name, "strategy": strategy, "encoder": "mamba", "size": size,
        "stage": stage, "seed": seed, "parent": parent, "purpose": "accuracy", "engine": "single", "precision": "fp32",
        "data": {"shards": "shards/fashion-mnist", "source": "fashion-mnist", "workers": 0},
        "train": {"images": length * STEPS * BATCH, "global_batch": BATCH, "lr": 1e-3, "betas": [0.9, 0.95],
                  "image_size": 32, "crop": "pad"},
    }  # fmt: skip
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    status = dict.fromkeys(STATUS_KEYS) | {"state": state, "attempt": 1, "host": "node1", "step": length * STEPS}
    (folder / STATUS).write_text(json.dumps(status))
    metrics = [metric(strategy, size, stage, seed, step) for step in range(5, length * STEPS + 1, 5)]
    append(folder / METRICS, *metrics)
    if state == "completed":
        summary = summarize(strategy, size, stage, seed, parent, metrics[-1], length)
        (folder / SUMMARY).write_text(json.dumps(summary))
        if stage == "finetune":
            append(folder / EVALUATIONS, evaluation(summary["top1"], step=length * STEPS))
    return folder


def metric(strategy: str, size: str, stage: str, seed: int, step: int, attempt: int = 1) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    seconds = 0.2 * WIDTH[size] / 64 * (3 if step == 5 else 1)
    start = {"ar": 1.0, "mae": 0.8}.get(strategy, 2.3) if stage == "pretrain" else 2.3
    loss = start * (step + 2) ** -0.3 * (64 / WIDTH[size]) ** 0.1 + 0.003 * math.sin(step + seed)
    return dict.fromkeys(METRIC_KEYS) | {
        "time": 1e9 + step, "attempt": attempt, "stage": stage, "step": step, "images_seen": step * BATCH, "epoch": 0.1,
        "loss": loss, "lr": 1e-3, "grad_norm": 1.0, "step_seconds": seconds, "data_seconds": 0.1 * seconds,
        "images_per_second": BATCH / seconds, "tokens_per_second": BATCH * TOKENS / seconds,
        "model_flops_per_image": 4e6 * WIDTH[size], "devices": 1, "nodes": 1, "micro_batch": BATCH, "skipped_steps": 0,
        "memory_bytes": 4e6 * WIDTH[size], "mfu": 0.1 + 0.0005 * WIDTH[size],
    }  # fmt: skip


def evaluation(top1: float, step: int = STEPS, attempt: int = 1, **more: Any) -> dict[str, Any]:
    """One line of evaluations.jsonl."""
    return dict.fromkeys(EVALUATION_KEYS) | {
        "time": 2e9, "attempt": attempt, "protocol": "finetune", "dataset": "fashion-mnist", "resolution": 32,
        "weights": "raw", "top1": top1, "top5": 0.99, "loss": 0.5, "images": 10000, "step": step, **more,
    }  # fmt: skip


def summarize(
    strategy: str, size: str, stage: str, seed: int, parent: str | None, last: dict[str, Any], length: int = 1
) -> dict[str, Any]:
    """summary.json of a completed run."""
    parameters = 12 * DEPTH * WIDTH[size] ** 2
    images = length * STEPS * BATCH
    flops = 6.0 * parameters * TOKENS * images
    stages = 2 if parent or (stage == "pretrain" and strategy in STAGES) else 1
    finetuned = stage == "finetune"
    floor, exponent = ERROR[strategy]
    error = floor + 0.12 * (parameters / 3e5) ** exponent + 0.06 * (stages * images / 2e4) ** -0.4
    top1 = 1 - error * (1 + 0.006 * math.sin(7 * seed + len(strategy)))
    return dict.fromkeys(SUMMARY_KEYS) | {
        "strategy": strategy, "encoder": "mamba", "size": size, "stage": stage, "parent": parent, "seed": seed,
        "parameters": parameters, "encoder_parameters": parameters, "global_batch": BATCH, "engine": "single",
        "images_seen": images, "epochs": 0.2, "schedule": "cosine", "finished_schedule": True,
        "final_loss": last["loss"], "top1": top1 if finetuned else None, "top1_best": top1 if finetuned else None,
        "pretrain_loss": None if finetuned else 0.2 + 0.8 * error,
        "protocol": "finetune" if finetuned else "pretrain_loss", "train_flops": flops, "scan_flops": flops / 20,
        "gpu_seconds": 60.0 * length, "useful_gpu_seconds": 55.0 * length, "total_images_seen": stages * images,
        "total_train_flops": stages * flops, "total_gpu_seconds": 60.0 * length * stages, "device": "cpu", "devices": 1,
        "images_per_second_per_device": last["images_per_second"],
    }  # fmt: skip


def append(path: Path, *records: dict[str, Any]) -> None:
    """Adds lines to a .jsonl file."""
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
