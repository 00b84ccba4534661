"""Carries out one run whose batches, at some positions of the training sequence, are not what they should be.

    python -m tests.scaling.disturbed RUN_FOLDER KIND FIRST LAST

nan: images that are not numbers; loud: soft targets a thousand times too large.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from data.batch import Batch
from scaling import inputs, rundir
from scaling.execute import execute
from scaling.reading import load_run
from scaling.stop import EXIT_STOPPED, Stopped


def disturb(kind: str, first: int, last: int) -> None:
    """Samples at the positions from `first` to `last`, those included, on whichever rank has them."""
    undisturbed = inputs.InputPipeline.__call__

    def disturbed(self: inputs.InputPipeline, batch: Batch) -> tuple[Tensor, Tensor | None]:
        images, labels = undisturbed(self, batch)
        hit = (batch.positions >= first) & (batch.positions <= last)
        if kind == "nan":
            images[hit] = torch.nan
        else:
            assert labels is not None
            labels[hit] *= 1000.0
        return images, labels

    inputs.InputPipeline.__call__ = disturbed  # type: ignore[method-assign]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    disturb(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    try:
        execute(load_run(folder / rundir.CONFIG), folder)
    except Stopped:
        sys.exit(EXIT_STOPPED)
