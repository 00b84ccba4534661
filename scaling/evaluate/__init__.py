"""What a finished stage is worth, on the whole test split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data.index import has_split
from scaling import rundir
from scaling.evaluate.classify import classify
from scaling.evaluate.pretraining import pretrain_loss
from scaling.metrics import Records

if TYPE_CHECKING:
    from scaling.run import Run


def evaluate(run: Run) -> list[dict[str, Any]]:
    """Evaluates the raw and, where it is on, the averaged weights; appends to evaluations.jsonl and returns the rows.

    Classification for stages that use labels; else the objective on the test split, where the shards have one. Nothing
    where the purpose is throughput.
    """
    if run.config.purpose == "throughput":
        return []
    if not run.config.classifies and not has_split(run.config.data.shards, "test"):
        return []
    records = Records(run.attempt, rundir.EVALUATIONS, rundir.EVALUATION_KEYS)
    rows = []
    for weights in ("raw", "ema") if run.engine.average else ("raw",):
        with run.engine.evaluating(averaged=weights == "ema"):
            measured = classify(run) if run.config.classifies else pretrain_loss(run)
        row = measured | {
            "dataset": run.index.source,
            "resolution": run.config.train.image_size,
            "weights": weights,
            "step": run.counters.step,
        }
        records.write(row)
        rows.append(row)
    records.close()
    return rows
