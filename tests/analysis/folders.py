"""Writes run folders as the trainer writes them, for tests that must not train."""

from __future__ import annotations

import hashlib
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
TOP1 = {"ar": 0.05, "mae": 0.03, "supervised": 0.0, "scratch": -0.06}
STAGES = {"ar": ("pretrain", "finetune"), "mae": ("pretrain", "finetune")}
DEPTH, TOKENS, STEPS, BATCH = 6, 64, 40, 256


def write_study(
    root: Path,
    name: str = "small",
    strategies: tuple[str, ...] = ("ar", "mae", "supervised", "scratch"),
    sizes: tuple[str, ...] = ("pico", "nano", "micro"),
    seeds: tuple[int, ...] = (0,),
) -> Path:
    """A finished study under `root`."""
    study = root / name
    study.mkdir(parents=True)
    axes = {"strategy": list(strategies), "encoder": ["mamba"], "size": list(sizes), "seed": list(seeds)}
    (study / STUDY).write_text(yaml.safe_dump({"name": name, "purpose": "accuracy", "axes": axes}))
    for strategy in strategies:
        for size in sizes:
            for seed in seeds:
                parent = None
                for stage in STAGES.get(strategy, ("finetune",)):
                    parent = write_run(study, strategy, size, stage, seed, parent).name
    return study


def write_run(
    study: Path,
    strategy: str = "ar",
    size: str = "pico",
    stage: str = "finetune",
    seed: int = 0,
    parent: str | None = None,
    state: str = "completed",
) -> Path:
    """One run folder in `state`; only a completed one has a summary."""
    digest = hashlib.sha256(f"{strategy} {size} {stage} {seed}".encode()).hexdigest()[:8]
    folder = study / f"{strategy}-mamba-{size}-{stage}-s{seed}-{digest}"
    folder.mkdir(parents=True)
    config = {
        "schema": 1, "study": study.name, "run": folder.name, "strategy": strategy, "encoder": "mamba", "size": size,
        "stage": stage, "seed": seed, "parent": parent, "purpose": "accuracy", "engine": "single", "precision": "fp32",
        "data": {"shards": "shards/fashion-mnist", "source": "fashion-mnist", "workers": 0},
        "train": {"images": STEPS * BATCH, "global_batch": BATCH, "lr": 1e-3, "betas": [0.9, 0.95], "crop": "pad"},
    }  # fmt: skip
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    status = dict.fromkeys(STATUS_KEYS) | {"state": state, "attempt": 1, "host": "node1", "step": STEPS}
    (folder / STATUS).write_text(json.dumps(status))
    metrics = [metric(strategy, size, stage, seed, step) for step in range(5, STEPS + 1, 5)]
    append(folder / METRICS, *metrics)
    if state == "completed":
        summary = summarize(strategy, size, stage, seed, parent, metrics[-1])
        (folder / SUMMARY).write_text(json.dumps(summary))
        if stage == "finetune":
            append(folder / EVALUATIONS, evaluation(top1=summary["top1"]))
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
    }  # fmt: skip


def evaluation(top1: float, step: int = STEPS, attempt: int = 1, **more: Any) -> dict[str, Any]:
    """One line of evaluations.jsonl."""
    return dict.fromkeys(EVALUATION_KEYS) | {
        "time": 2e9, "attempt": attempt, "protocol": "finetune", "dataset": "fashion-mnist", "resolution": 32,
        "weights": "raw", "top1": top1, "top5": 0.99, "loss": 0.5, "images": 10000, "step": step, **more,
    }  # fmt: skip


def summarize(
    strategy: str, size: str, stage: str, seed: int, parent: str | None, last: dict[str, Any]
) -> dict[str, Any]:
    """summary.json of a completed run."""
    parameters = 12 * DEPTH * WIDTH[size] ** 2
    flops = 6.0 * parameters * TOKENS * STEPS * BATCH
    stages = 2 if parent or (stage == "pretrain" and strategy in STAGES) else 1
    finetuned = stage == "finetune"
    top1 = 0.8 + TOP1[strategy] + 0.05 * math.log10(parameters / 3e5) + 0.002 * math.sin(7 * seed)
    return dict.fromkeys(SUMMARY_KEYS) | {
        "strategy": strategy, "encoder": "mamba", "size": size, "stage": stage, "parent": parent, "seed": seed,
        "parameters": parameters, "encoder_parameters": parameters, "global_batch": BATCH, "engine": "single",
        "images_seen": STEPS * BATCH, "epochs": 0.2, "schedule": "cosine", "finished_schedule": True,
        "final_loss": last["loss"], "top1": top1 if finetuned else None, "top1_best": top1 if finetuned else None,
        "protocol": "finetune" if finetuned else "pretrain_loss", "train_flops": flops, "scan_flops": flops / 20,
        "gpu_seconds": 60.0, "useful_gpu_seconds": 55.0, "total_images_seen": stages * STEPS * BATCH,
        "total_train_flops": stages * flops, "total_gpu_seconds": 60.0 * stages, "device": "cpu", "devices": 1,
        "images_per_second_per_device": last["images_per_second"],
    }  # fmt: skip


def append(path: Path, *records: dict[str, Any]) -> None:
    """Adds lines to a .jsonl file."""
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
