"""armscale evaluate: one checkpoint, ours or official, on packed images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.cli.outputs import output_file

KINDS = ("classification", "pretrain_loss", "knn", "linear_probe")


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A run folder, its weights.safetensors, or an official checkpoint."),
    ],
    shards: Annotated[
        str, typer.Argument(metavar="SHARDS", help="Packed images: split test or val; k-NN and probe read train too.")
    ],
    kind: Annotated[str, typer.Option(help="classification, pretrain_loss, knn or linear_probe.")] = "classification",
    dataset: Annotated[str, typer.Option(help="classification: imagenet-v2, -a, -r, -sketch or -real instead.")] = "",
    path: Annotated[str, typer.Option(help="Its packed shards, or the file of labels of imagenet-real.")] = "",
    resize: Annotated[
        str, typer.Option(help="square, aspect, or none; default: the run's own, else square, as the paper.")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="Images a forward pass and rank.")] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes a rank.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    output: Annotated[Path | None, typer.Option(help="A JSON file for the result.", callback=output_file)] = None,
) -> None:
    """Top-1 and top-5 (or the pretraining loss) of a checkpoint. Under torchrun the ranks share the images.

    Example: armscale evaluate arm_base_finetuned.pth shards/imagenet --workers 8 --precision bf16
    """
    import models
    from scaling.checks import check_evaluator, choice
    from scaling.config import PRECISIONS, EvaluatorConfig
    from scaling.evaluate import BUILDERS
    from scaling.evaluate.subject import subject_from
    from scaling.files import write_json
    from scaling.weights import normalization

    choice("--kind", kind, KINDS)
    choice("--precision", precision, PRECISIONS)
    module = models.load(checkpoint)
    stage = "finetune" if type(module).__name__ == "Classifier" else "pretrain"
    options = EvaluatorConfig(kind, dataset=dataset, path=path)
    check_evaluator(options, stage, "evaluate")
    subject = subject_from(
        module, shards, eval_resize=resize or own_resize(checkpoint), batch=batch, workers=workers, precision=precision,
        normalization=normalization(checkpoint),
    )  # fmt: skip
    row = BUILDERS[kind](subject, options)
    assert row is not None
    if subject.rank.rank == 0:
        typer.echo(_sentence(row, subject.augmentation.image_size))
        if output is not None:
            write_json(output, row)
    subject.rank.leave()


def own_resize(checkpoint: Path) -> str:
    """How the run that these weights are of scales its test images, so that its accuracy is found again."""
    from models.weights import WEIGHTS
    from scaling.reading import load_run
    from scaling.rundir import CONFIG

    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if (checkpoint.is_dir() or checkpoint.name == WEIGHTS) and (folder / CONFIG).is_file():
        return load_run(folder / CONFIG).train.eval_resize
    return "square"


def _sentence(row: dict[str, object], size: int) -> str:
    """What was found, in one line."""
    named = (("top-1", "top1", "{:.2%}"), ("top-5", "top5", "{:.2%}"), ("loss", "loss", "{:.4f}"))
    found = [f"{title} {form.format(row[key])}" for title, key, form in named if row.get(key) is not None]
    return f"{', '.join(found)}: {row['images']:,} images at {size} px, {row['protocol']}"
