"""README.md of a run folder: the model card that goes with its weights, written from the folder alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from models.weights import WEIGHTS
from scaling import files, rundir
from scaling.reading import load_yaml

CARD = "README.md"
RECIPE = (
    "images", "epochs", "global_batch", "image_size", "lr", "base_lr", "schedule", "warmup", "weight_decay", "betas",
    "clip", "layer_decay", "drop_path", "ema", "label_smoothing", "mixup", "cutmix", "randaugment", "erasing", "crop",
)  # fmt: skip
"""Fields of the stage that the card names; config.yaml has all."""

Facts = Mapping[str, Any]


def write_card(folder: Path, summary: Facts, path: Path | None = None) -> None:
    """Writes the card of the run in `folder`, whose final numbers are `summary`, to README.md there or to `path`."""
    config = load_yaml(folder / rundir.CONFIG)
    evaluations, _ = rundir.read_lines(folder / rundir.EVALUATIONS)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        header = file.metadata()
    parts = [
        f"# {config['run']}",
        _what(config, summary),
        f"## Numbers\n\n{_numbers(evaluations, summary)}",
        f"## Recipe\n\n{_recipe(config)}",
        f"## Data\n\n{_data(config, header)}",
        f"## Use\n\n{_use(config, header)}",
    ]
    files.write_text(path or folder / CARD, "\n\n".join(parts) + "\n")


def _what(config: Facts, summary: Facts) -> str:
    parent = f"Its encoder starts from the run `{config['parent']}`." if config["parent"] else ""
    if config["stage"] == "probe" and not parent:
        parent = "Its weights are random: the control of other probes."
    trained = {
        "ar": "autoregressive pretraining (ARM, arXiv 2406.07537)",
        "mae": "masked autoencoding (MAE, arXiv 2111.06377)",
        "supervised": "supervised training",
        "scratch": "the finetuning stage alone, from random weights, as a control",
    }[config["strategy"]]
    return (
        f"A {config['encoder']} encoder of size {config['size']}, stage {config['stage']} of {trained}, seed "
        f"{config['seed']}. {summary['parameters']:,} parameters, {summary['encoder_parameters']:,} of them in the "
        f"encoder. {parent}".strip()
    )


def _numbers(evaluations: list[dict[str, Any]], summary: Facts) -> str:
    """Every evaluation at the last step, then what the training took."""
    last = max((row["step"] for row in evaluations), default=0)
    rows = {
        tuple(row[key] for key in ("protocol", "dataset", "resolution", "weights")): row
        for row in evaluations
        if row["step"] == last
    }
    lines = [
        "| protocol | data set | px | weights | top-1 | top-5 | loss | images |",
        "| --- | --- " + "| ---: " * 6 + "|",
    ]
    for (protocol, dataset, resolution, weights), row in rows.items():
        top1, top5 = ("" if row[key] is None else f"{row[key]:.2%}" for key in ("top1", "top5"))
        loss = "" if row["loss"] is None else f"{row['loss']:.4f}"
        lines.append(
            f"| {protocol} | {dataset} | {resolution} | {weights} | {top1} | {top5} | {loss} | {row['images']:,} |"
        )
    table = "\n".join(lines) if rows else "Not evaluated."
    return (
        f"{table}\n\n"
        f"Training: {summary['images_seen']:,} images ({summary['epochs']:.4g} epochs), {summary['train_flops']:.3g} "
        f"operations in matrix products and {summary['scan_flops']:.3g} in scans, {summary['gpu_seconds']:.0f} device "
        f"seconds on {summary['devices']} x {summary['device']}. With its ancestors: {summary['total_images_seen']:,} "
        f"images, {summary['total_train_flops']:.3g} operations, {summary['total_gpu_seconds']:.0f} device seconds."
    )


def _recipe(config: Facts) -> str:
    if config["stage"] == "probe":
        return "Nothing was trained: the evaluators read the features of centre crops."
    train = config["train"]
    fields = {name: train[name] for name in RECIPE if train.get(name) not in (None, "", 0, 0.0)}
    lines = [f"- {name}: {value}" for name, value in fields.items()]
    lines.append(f"- precision: {config['precision']}")
    return "\n".join(lines) + f"\n\nEvery field stands in {rundir.CONFIG} beside this file."


def _data(config: Facts, header: Facts) -> str:
    classes = json.loads(header["classes"])
    named = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    data = config["data"]
    return (
        f"{data['source'] or data['shards']}: {len(classes)} classes ({named}). Images are normalised by mean "
        f"{_rounded(header['mean'])} and standard deviation {_rounded(header['std'])} (RGB, of values from 0 to 1)."
    )


def _rounded(values: str) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in json.loads(values)) + ")"


def _use(config: Facts, header: Facts) -> str:
    size = config["train"]["image_size"]
    logits = "    logits = model(images)              # (batch, classes)\n" if config["stage"] == "finetune" else ""
    return (
        "    import models\n\n"
        f'    model = models.load("{WEIGHTS}")\n'
        f"{logits}"
        f"    features = model.features(images)   # (batch, width); images (batch, 3, {size}, {size}), normalised\n\n"
        f"{WEIGHTS} holds the {'averaged' if header['weights'] == 'ema' else 'last'} weights; its header holds the "
        "model's config, the classes, and the mean and deviation. `armscale convert` writes the official ARM format "
        "where there is one."
    )
