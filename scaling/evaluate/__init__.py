"""What a stage is worth: the evaluators in its config, on the weights as they stand, during training and after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from data.index import has_split
from scaling import rundir
from scaling.config import EvaluatorConfig, RunConfig
from scaling.errors import UserError
from scaling.evaluate.classify import classify
from scaling.evaluate.imagenet import test_set
from scaling.evaluate.inference import throughput
from scaling.evaluate.knn import knn
from scaling.evaluate.pictures import reconstruction
from scaling.evaluate.pretraining import pretrain_loss
from scaling.evaluate.probe import linear_probe
from scaling.evaluate.subject import Subject, subject_of
from scaling.metrics import Records

if TYPE_CHECKING:
    from scaling.run import Run

Evaluator = Callable[[Subject, EvaluatorConfig], dict[str, Any] | None]
"""Gives its part of a row of evaluations.jsonl; or writes a file of its own and gives None."""

BUILDERS: dict[str, Evaluator] = {
    "classification": classify,
    "pretrain_loss": pretrain_loss,
    "knn": knn,
    "linear_probe": linear_probe,
    "reconstruction": reconstruction,
    "throughput": throughput,
}

WITHOUT_ROWS = ("reconstruction", "throughput")


def having_turn(config: RunConfig, step: int, *, finished: bool) -> list[EvaluatorConfig]:
    """The evaluators whose turn it is after `step` steps: by their cadence, and all of them after the last.

    None where the purpose is throughput, nor for a pretraining on shards without a test split. Where images are held
    out to choose by, other data sets are left alone.
    """
    held_out = config.data.held_out > 0
    entries = [
        entry
        for entry in config.train.evaluate
        if (finished or (entry.every and step % entry.every == 0)) and not (held_out and entry.dataset)
    ]
    if not entries or config.purpose == "throughput":
        return []
    return entries if config.labelled or held_out or has_split(config.data.shards, "test") else []


def require_test_sets(config: RunConfig, classes: Sequence[str]) -> None:
    """That the other test sets of a run are there and fit its classes, found out before it trains; UserError."""
    due = having_turn(config, 0, finished=True)
    for number, entry in enumerate(config.train.evaluate):
        if entry not in due:
            continue
        try:
            test_set(config.data.shards, classes, entry)
        except UserError as error:
            why = f"{entry.dataset}: {error.why or f'{error.field} {error.value!r}'}"
            raise UserError(f"{config.stage}.evaluate[{number}].path", entry.path, error.valid, why) from None


def evaluate(run: Run, *, finished: bool = True) -> list[dict[str, Any]]:
    """Runs the evaluators whose turn it is and returns their rows.

    The raw and, where it is on, the averaged weights are evaluated; rows are appended to evaluations.jsonl.
    """
    config, step = run.config, run.counters.step
    entries = having_turn(config, step, finished=finished)
    if not entries:
        return []
    records = Records(run.attempt, rundir.EVALUATIONS, rundir.EVALUATION_KEYS)
    rows = []
    for weights in _weights(run):
        subject = subject_of(run)
        with run.engine.evaluating(averaged=weights == "ema"):
            for entry in entries:
                measured = BUILDERS[entry.kind](subject, entry)
                if measured is None:
                    continue
                facts = {"dataset": run.dataset, "resolution": config.train.image_size}
                row = facts | {"weights": weights, "step": step} | measured
                records.write(row)
                rows.append(row)
    records.close()
    return rows


def was_cut(run: Run) -> bool:
    """Whether earlier attempts ended within the evaluation of the step at which this one goes on; all ranks agree.

    The state was committed before it began. The branching point of a decay was its trunk's to evaluate.
    """
    step = run.counters.step
    if step == run.steps or run.counters.images_seen <= (run.config.train.branched_at or 0):
        return False
    entries = having_turn(run.config, step, finished=False)
    due = len(_weights(run)) * sum(entry.kind not in WITHOUT_ROWS for entry in entries)
    if not due:
        return False
    cut = False
    if run.attempt.writes:
        rows, _ = rundir.read_lines(run.attempt.folder / rundir.EVALUATIONS)
        cut = max(Counter(row["attempt"] for row in rows if row["step"] == step).values(), default=0) < due
    return run.side.any(cut)[0]


def _weights(run: Run) -> tuple[str, ...]:
    return ("raw", "ema") if run.engine.average else ("raw",)
