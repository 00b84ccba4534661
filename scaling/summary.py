"""summary.json: the final numbers of a run. It exists only when the run is completed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scaling import rundir
from scaling.attempt import origins
from scaling.config import PROTOCOLS
from scaling.environment import device_name
from scaling.metrics import finite
from scaling.steplog import peak_memory

if TYPE_CHECKING:
    from scaling.run import Run


def sum_up(run: Run, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every key of `rundir.SUMMARY_KEYS`, absent values null. Rank 0 alone."""
    values = _own(run) | _measured(run, evaluations) | _rates(run)
    values |= _totals(run, values)
    assert set(values) == set(rundir.SUMMARY_KEYS), set(values) ^ set(rundir.SUMMARY_KEYS)
    ordered = {key: values[key] for key in rundir.SUMMARY_KEYS}
    return {key: finite(value) if isinstance(value, float) else value for key, value in ordered.items()}


def _own(run: Run) -> dict[str, Any]:
    """What the run was."""
    config, train = run.config, run.config.train
    useful = run.counters.gpu_seconds
    rows = rundir.read_lines(run.attempt.folder / rundir.METRICS)[0]
    images = run.counters.images_seen - (train.branched_at or 0)  # before that they are the trunk's
    trunk = train.schedule == "wsd" and train.decay == 0
    return {
        "strategy": config.strategy,
        "encoder": config.encoder,
        "size": config.size,
        "stage": config.stage,
        "parent": config.parent,
        "seed": config.seed,
        "parameters": run.cost.parameters,
        "encoder_parameters": run.cost.encoder_parameters,
        "global_batch": train.global_batch,
        "images_seen": images,
        "epochs": images / run.index.samples,
        "schedule": train.schedule,
        "finished_schedule": run.counters.step == run.steps and not trunk,
        "final_loss": rows[-1].get("loss") if rows else None,
        "train_flops": run.cost.flops_per_image * images,
        "scan_flops": run.cost.scan_flops_per_image * images,
        "gpu_seconds": useful + lost_seconds(rows, origins(run.attempt.folder)),
        "useful_gpu_seconds": useful,
        "device": device_name(run.engine.device),
        "devices": run.engine.rank.ranks,
        "engine": config.engine,
        "peak_memory_bytes": peak_memory(run.engine.device),
    }


def _measured(run: Run, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last evaluation of the weights that the config names (averaged if that is on), never a maximum.

    It is the stage's own: other test sets, k-NN and probes stand in evaluations.jsonl alone.
    """
    wanted = "ema" if run.engine.average else "raw"
    protocol = PROTOCOLS[run.config.stage]
    own = [row for row in evaluations if (row["protocol"], row["dataset"]) == (protocol, run.dataset)]
    final: dict[str, Any] = next((row for row in reversed(own) if row["weights"] == wanted), {})
    past = rundir.read_lines(run.attempt.folder / rundir.EVALUATIONS)[0]
    accuracies = [
        row["top1"] for row in past if (row["protocol"], row["dataset"]) == (protocol, run.dataset) and row["top1"]
    ]
    return {
        "pretrain_loss": final.get("loss") if protocol == "pretrain_loss" else None,
        "top1": final.get("top1"),
        "top1_best": max(accuracies, default=None),
        "protocol": final.get("protocol"),
    }


def _rates(run: Run) -> dict[str, Any]:
    """What the run reached as a rule, at whatever world sizes."""
    rate = rate_of(rundir.read_lines(run.attempt.folder / rundir.METRICS)[0])
    return {"images_per_second_per_device": rate, "mfu": None if rate is None else run.log.utilisation(rate)}


def rate_of(rows: Sequence[dict[str, Any]]) -> float | None:
    """Images per second and device: median over the intervals but the first, which holds the start-up.

    A resume may be on another number of devices.
    """
    steady = [row["images_per_second"] / row["devices"] for row in rows[1:] or rows if row["images_per_second"]]
    return statistics.median(steady) if steady else None


def _totals(run: Run, own: dict[str, Any]) -> dict[str, Any]:
    """Own and ancestors' images, FLOPs and device seconds; of a trunk its part before the branch."""
    parent, branched_at = run.config.parent, run.config.train.branched_at
    before = rundir.read_json(run.attempt.folder.parent / parent / rundir.SUMMARY) if parent else None
    before = before or {}
    after_branch = 1 - branched_at / before["images_seen"] if branched_at and before else 0
    return {
        f"total_{name}": own[name] + (before.get(f"total_{name}") or 0) - after_branch * (before.get(name) or 0)
        for name in ("images_seen", "train_flops", "gpu_seconds")
    }


def lost_seconds(rows: Sequence[dict[str, Any]], starts: Mapping[int, int]) -> float:
    """Device seconds of logged steps that were taken back: a later attempt, which logged, went on from before them.

    `starts` are the steps that the attempts went on from, at which their first intervals begin. Steps that a kill kept
    from being logged are not known here.
    """
    attempts = {row["attempt"] for row in rows}
    starts = {attempt: step for attempt, step in starts.items() if attempt in attempts}
    lost, reached = 0.0, dict(starts)
    for row in rows:
        attempt, step = row["attempt"], row["step"]
        began, reached[attempt] = reached.get(attempt, step), step
        remaining = min((start for later, start in starts.items() if later > attempt), default=step)
        lost += max(0, step - max(began, remaining)) * row["step_seconds"] * row["devices"]
    return lost
