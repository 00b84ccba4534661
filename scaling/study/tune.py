"""Tuning: the same grid for every arm, chosen on images held out of training; the final runs take the chosen values.

Trials are runs like all others, of the first seed, trained without the held-out images and evaluated on them alone. A
pretraining that the grid does not touch is shared with the final runs: it saw the held-out images, but no label.
An arm is what the final runs differ in beside their seed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling import files, rundir
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.study.chains import cell_runs, runs
from scaling.study.stages import tunes_pretraining
from scaling.study.table import Study

WITHOUT_384 = {"finetune_384": {"images": None, "epochs": None}}
Values = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One arm: its place on the axes without the seed, and its trials, the values of each with its last stage's run."""

    point: Values
    trials: list[tuple[Values, str]]

    def scores(self, folder: Path) -> list[float | None]:
        """Top-1 of each trial on the held-out images; None where it is not completed."""
        summaries = (rundir.read_json(folder / run / rundir.SUMMARY) or {} for _, run in self.trials)
        return [summary.get("top1") for summary in summaries]

    def chosen(self, folder: Path) -> Values | None:
        """The values of the trial of the highest top-1, the first of equals; None until every trial is completed."""
        known = [score for score in self.scores(folder) if score is not None]
        return self.trials[known.index(max(known))][0] if len(known) == len(self.trials) else None


def at_edge(grid: dict[str, list[Any]], chosen: Values) -> list[str]:
    """Chosen numbers that are the smallest or largest of their grid: a better one may lie beyond, except below 0.

    What is no number in a grid, as null or a name, has no place among the others.
    """
    numbers = {name: {value for value in values if _is_number(value)} for name, values in grid.items()}
    return [
        name
        for name, value in chosen.items()
        if _is_number(value) and value and len(numbers[name]) > 1
        if value in (min(numbers[name]), max(numbers[name]))
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_tuning(study: Study, folder: Path, fingerprint: str, samples: int | None, classes: int | None) -> None:
    """tuning.json of the study: the grid, and of every arm its trials, what was chosen and what of it is at an edge."""
    if study.tune is None:
        return
    told = []
    for arm in trials(study, fingerprint, samples, classes)[1]:
        chosen = arm.chosen(folder)
        rows = zip(arm.trials, arm.scores(folder), strict=True)
        told.append({
            "arm": arm.point,
            "trials": [{"run": run, "values": values, "top1": score} for (values, run), score in rows],
            "chosen": chosen,
            "at_edge": at_edge(study.tune.grid, chosen) if chosen else [],
        })  # fmt: skip
    record = {"grid": study.tune.grid, "held_out": study.tune.held_out, "arms": told}
    files.write_json(folder / rundir.TUNING, record)


def tuned_runs(
    study: Study, folder: Path, fingerprint: str, samples: int | None, classes: int | None
) -> tuple[list[RunConfig], int]:
    """(runs: every trial, then the final runs of arms whose values are chosen; number of arms still without them).

    What comes before finetuning is final from the start, for all seeds, where the grid does not touch it.
    """
    if study.tune is None:
        return runs(study, fingerprint, samples, classes), 0
    table, arms = trials(study, fingerprint, samples, classes)
    values = [arm.chosen(folder) if fingerprint else None for arm in arms]
    settled = [arm.point for arm, chosen in zip(arms, values, strict=True) if chosen is not None]
    any_values = {name: tried[0] for name, tried in study.tune.grid.items()}
    rules = [{"when": arm.point, "set": chosen or any_values} for arm, chosen in zip(arms, values, strict=True)]
    final = dataclasses.replace(study, rules=[*study.rules, *rules])
    for point, stages in cell_runs(final, fingerprint, samples, classes):
        if any(point.items() >= of_arm.items() for of_arm in settled):
            known = stages
        else:
            known = [] if tunes_pretraining(study) else [run for run in stages if run.stage != "finetune"]
        table |= {run.run: run for run in known if run.run not in table}
    return list(table.values()), len(arms) - len(settled)


def trials(
    study: Study, fingerprint: str, samples: int | None, classes: int | None
) -> tuple[dict[str, RunConfig], list[Arm]]:
    """The runs of all trials by their id, and the arms that they belong to.

    The grid is spanned as axes. A stage `finetune_384` is no part of a trial unless the grid is about it, and what
    concerns a pretraining makes no further trials of an arm that has none.
    """
    assert study.tune is not None
    grid = study.tune.grid
    shorter = [] if any(name.startswith("finetune_384.") for name in grid) else [{"when": {}, "set": WITHOUT_384}]
    spanned = dataclasses.replace(
        study,
        axes={name: values[:1] if name == "seed" else values for name, values in study.axes.items()} | grid,
        rules=[*study.rules, *shorter],
        data=dataclasses.replace(study.data, held_out=study.tune.held_out),
    )
    table: dict[str, RunConfig] = {}
    arms: dict[str, Arm] = {}
    for place, stages in cell_runs(spanned, fingerprint, samples, classes):
        if any(run.train.branched_at for run in stages):
            raise UserError("tune", grid, "a study without branches")
        _require_score(stages[-1])
        table |= {run.run: run for run in stages}
        point = {name: value for name, value in place.items() if name in study.axes and name != "seed"}
        arm = arms.setdefault(repr(point), Arm(point, []))
        pretrained = any(run.stage == "pretrain" for run in stages)
        own = {name: place[name] for name in grid if pretrained or not name.startswith("pretrain.")}
        if all(run != stages[-1].run for _, run in arm.trials):
            arm.trials.append((own, stages[-1].run))
    return table, list(arms.values())


def _require_score(last: RunConfig) -> None:
    """UserError where a trial would be completed without the top-1 on held-out images that its arm is chosen by."""
    if last.purpose == "throughput":
        raise UserError("purpose", last.purpose, "accuracy", why="tune chooses by top-1, and nothing is evaluated")
    if not any(entry.kind == "classification" and not entry.dataset for entry in last.train.evaluate):
        evaluators = [f"{entry.kind} {entry.dataset}".strip() for entry in last.train.evaluate]
        valid = "a list with a classification without dataset, by whose top-1 tune chooses"
        raise UserError(f"{last.stage}.evaluate", evaluators, valid)
