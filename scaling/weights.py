"""Final weights as safetensors, loadable without the trainer: `safetensors.torch.load_file` and `models.build`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safetensors.torch import save

from models.weights import WEIGHTS, header_of
from scaling import files

if TYPE_CHECKING:
    from scaling.run import Run


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
    with files.atomic_write(run.attempt.folder / WEIGHTS) as file:
        file.write(save(tensors, metadata))
