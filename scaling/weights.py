"""Final weights as safetensors, loadable without the trainer: `safetensors.torch.load_file` and `models.build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save

from models.weights import WEIGHTS, header_of, notes_of
from scaling import files

if TYPE_CHECKING:
    from scaling.run import Run

Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of RGB values from 0 to 1."""


def export(run: Run) -> None:
    """Writes the weights that the summary's accuracy belongs to (averaged if that is on), config in the header."""
    tensors = run.engine.weights()
    if not run.attempt.writes:
        return
    encoder = run.config.encoder_config()
    objective = run.config.objective_config(len(run.index.classes))
    metadata = header_of(encoder, objective) | {
        "classes": json.dumps(list(run.index.classes)),
        "mean": json.dumps(list(run.index.mean)),
        "std": json.dumps(list(run.index.std)),
        "weights": "ema" if run.engine.average else "raw",
    }
    run.attempt.check()
    for left in run.attempt.folder.glob(f".{WEIGHTS}.*.tmp"):  # by a kill in the midst of this
        left.unlink()
    with files.atomic_write(run.attempt.folder / WEIGHTS) as file:
        file.write(save(tensors, metadata))


def normalization(path: Path) -> Normalization:
    """The mean and deviation of the images that the weights in a file or run folder were trained on.

    A run's weights have theirs beside them, converted ones too; whatever has none came from the official code, which
    takes the constants of published ImageNet models.
    """
    from data.imagenet import NORMALIZATION  # and with it scipy.io, which no rank of a run needs

    notes = notes_of(path)
    if "mean" not in notes:
        return NORMALIZATION
    (red, green, blue), (r, g, b) = json.loads(notes["mean"]), json.loads(notes["std"])
    return (red, green, blue), (r, g, b)
