"""Going back to the last checkpoint when training has gone wrong, and the bundle that says what was in the batches.

The run then has the weights, moments and step of that checkpoint and goes on with the images after the bad ones: all
batches since the checkpoint are left out, as in PaLM (Chowdhery et al. 2022, section 5.1). In metrics.jsonl a rollback
is a new attempt, whose lines replace those of the steps taken back, and skipped_steps grows by their number.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from data.index import split_folder
from data.store import Store
from data.stream import SampleOrder
from scaling import checkpoint, files, rundir
from scaling.attempt import Attempt
from scaling.metrics import finite
from scaling.steps import Step

if TYPE_CHECKING:
    from scaling.run import Run


class TrainingFailed(RuntimeError):  # noqa: N818 - the run failed; nothing in the program did
    """Steps went on being bad after all the rollbacks that the config allows."""


def roll_back(run: Run) -> None:
    """Takes the run back to its last checkpoint; all ranks call it after the same step.

    Raises TrainingFailed when the config allows no further rollback.
    """
    bad, counters, rank = run.health.bad, run.counters, run.engine.rank
    run.saver.wait()
    what = f"{len(bad)} bad steps in a row up to step {bad[-1].number} (loss {bad[-1].loss:.4g})"
    bundle = run.attempt.folder / rundir.LOGS / f"bad-steps-{run.attempt.number}.json"
    if run.attempt.writes:
        files.write_json(bundle, describe(run, bad))
    if counters.rollbacks >= run.config.faults.rollbacks:
        raise TrainingFailed(f"{what} after {counters.rollbacks} rollbacks; {bundle} has their samples and norms")
    step, consumed, rollbacks = counters.step, counters.consumed, counters.rollbacks
    state = run.engine.state()
    saved = checkpoint.load(checkpoint.at_step(run.attempt.folder, run.saver.newest), state)
    run.engine.loaded()
    vars(counters).update(vars(saved))
    counters.images_skipped = consumed - saved.images_seen
    counters.rollbacks = rollbacks + 1
    run.engine.skipped += step - saved.step
    run.health.restart(counters.losses)
    run.readback.clear()
    run.log.clear()
    _renew(run.attempt, rank.ranks, saved.step)
    if run.attempt.writes:
        print(f"{what}: back to step {saved.step}, batches since then left out; see {bundle}", file=sys.stderr)


def _renew(attempt: Attempt, ranks: int, step: int) -> None:
    """The next attempt, in the same processes, which goes on from `step`."""
    number = torch.zeros(1, dtype=torch.int64)
    if attempt.writes:
        attempt.check()
        number += Attempt.claim(attempt.folder).number
    if ranks > 1:
        dist.broadcast(number, src=0)
    attempt.number = int(number.item())
    attempt.goes_on_from(step)
    attempt.set_status("running")


def describe(run: Run, bad: list[Step]) -> dict[str, Any]:
    """What it takes to repeat the bad steps: losses, norms, samples, and the seed and positions of all random draws."""
    config, batch = run.config, run.config.train.global_batch
    store = Store(split_folder(config.data.shards, "train"))
    order = SampleOrder(store, run.part, global_batch=batch, seed=config.seed, lanes=config.data.lanes)
    steps = []
    for step in bad:
        epochs, samples = order.at(np.arange(step.consumed - batch, step.consumed, dtype=np.int64))
        values = {name: finite(value) if isinstance(value, float) else value for name, value in asdict(step).items()}
        steps.append({
            **values,
            "first_position": step.consumed - batch,
            "epochs": sorted(set(epochs.tolist())),
            "samples": samples.tolist(),
            "keys": [store.name(sample) for sample in samples.tolist()],
        })  # fmt: skip
    return {
        "attempt": run.attempt.number,
        "rollbacks": run.counters.rollbacks,
        "seed": config.seed,  # noise and augmentation are functions of (seed, stage, position)
        "stage": config.stage,
        "losses_before": run.health.losses,
        "steps": steps,
    }
