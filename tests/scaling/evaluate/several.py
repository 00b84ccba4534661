"""Evaluates a run in every way on several ranks, as torchrun started them: several.py RUN SHARDS OUTPUT.json."""

import sys
from pathlib import Path

import models
from scaling.config import EvaluatorConfig
from scaling.evaluate import BUILDERS
from scaling.evaluate.subject import subject_from
from scaling.files import write_json

KINDS = ("knn", "linear_probe", "pretrain_loss")


def rows(run: Path, shards: str, batch: int) -> dict[str, object]:
    """What each kind finds."""
    subject = subject_from(models.load(run), shards, eval_resize="none", batch=batch)
    return {kind: BUILDERS[kind](subject, EvaluatorConfig(kind)) for kind in KINDS} | {"rank": subject.rank.rank}


if __name__ == "__main__":
    found = rows(Path(sys.argv[1]), sys.argv[2], batch=7)
    if found["rank"] == 0:
        write_json(sys.argv[3], found)
