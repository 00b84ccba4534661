"""armscale convert: between the official code's checkpoints and ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.cli.outputs import output_file


def convert(
    input: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="An official .pth or .safetensors, a run folder, its weights.safetensors, or a DeepSpeed universal "
            "checkpoint with official names.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The file to write.", callback=output_file)],
    to: Annotated[
        str, typer.Option(help="official (.pth), safetensors (the official names) or native (ours, with the config).")
    ],
) -> None:
    """Convert weights between the official ARM code and armscale, without loss and without executing any pickle.

    Of a run folder the model card goes along: OUTPUT with the ending .md says what was trained, on what, and how well.

    Example: armscale convert runs/imagenet/ar-mamba-base-... arm_base.pth --to official
    """
    from models.weights import notes_of, read_module, write_module
    from scaling.card import write_card
    from scaling.rundir import SUMMARY, read_json

    module = read_module(input)
    write_module(module, output, to, notes_of(input))
    if (summary := read_json(input / SUMMARY)) is not None:
        write_card(input, summary, output.with_suffix(".md"))
    tensors = sum(tensor.numel() for tensor in module.parameters())
    print(f"{output}: {type(module).__name__}, {tensors:,} parameters, {to}")
