"""How a run starts: inputs are checked, the folder is claimed, the model is built and the newest checkpoint loaded."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from data.index import Index, read_index, split_folder
from models.build import build_on_meta
from models.initialize import initialize
from models.transfer import transfer
from scaling import checkpoint, files, rundir
from scaling.attempt import Attempt
from scaling.config import RunConfig, stage_images
from scaling.cost import cost
from scaling.engines import build_engine
from scaling.environment import Rank, describe
from scaling.errors import UserError
from scaling.evaluate import require_test_sets
from scaling.inputs import InputPipeline
from scaling.metrics import Records
from scaling.reading import dump
from scaling.requirements import require_split, split_index
from scaling.run import Run
from scaling.saver import Saver
from scaling.share import share_of
from scaling.sidegroup import SideGroup
from scaling.stop import StopRequest
from scaling.study import identity
from scaling.weights import WEIGHTS


def run_folder(config: RunConfig, path: Path, root: Path) -> Path:
    """The folder of the run whose config was read from `path`; refuses a folder that holds another config."""
    found = identity.run_id(config, read_index(split_folder(config.data.shards, "train")).fingerprint)
    if path.name == rundir.CONFIG and (path.parent.name == found or (path.parent / rundir.STATUS).exists()):
        if path.parent.name != found:
            raise UserError(
                "config",
                str(path),
                f"a config whose run id is {path.parent.name} (this one's is {found})",
                why="a field that changes the result was changed; start a new run instead",
            )
        return path.parent
    return root / (config.study or "single") / found


def check_inputs(config: RunConfig, folder: Path, ranks: int) -> tuple[Index, Path | None]:
    """The index of the training split and the parent's weights; UserError before any work for what cannot work.

    A decay takes over the whole state of its trunk instead of weights.
    """
    share_of(config, ranks)
    index_of = cache(split_index)
    index = index_of(config.data.shards, "train")
    require_split(config, index_of)
    require_test_sets(config, index.classes)
    if config.parent is None:
        return index, None
    if config.train.branched_at:
        branching_point(config, folder)
        return index, None
    weights = folder.parent / config.parent / WEIGHTS
    try:
        with safe_open(weights, framework="pt"):
            pass  # its header says how long the file must be
    except (OSError, SafetensorError) as error:
        valid = "a completed run beside this one"
        raise UserError("parent", config.parent, valid, why=f"{WEIGHTS} cannot be read there: {error}") from None
    return index, weights


def branching_point(config: RunConfig, folder: Path) -> Path:
    """The checkpoint of its trunk at which a decay starts; UserError when the trunk has not kept it."""
    assert config.parent is not None and config.train.branched_at is not None
    return checkpoint.at_step(folder.parent / config.parent, config.train.branched_at // config.train.global_batch)


def claim(config: RunConfig, folder: Path, rank: Rank, stop: StopRequest) -> Attempt:
    """Rank 0 claims the attempt and writes config.yaml, environment.json and the status; the others take its number."""
    described = describe(rank)
    number = torch.zeros(1, dtype=torch.int64)
    attempt = Attempt(folder, 0, writes=rank.rank == 0)
    if rank.rank == 0:
        attempt = Attempt.claim(folder)
        number += attempt.number
        checkpoint.clear_unfinished(folder)  # while the other ranks wait
        stop.before_leaving = partial(attempt.last_word, "stopped")
        (folder / rundir.LOGS).mkdir(exist_ok=True)
        named = dataclasses.replace(config, run=folder.name)
        files.write_text(folder / rundir.CONFIG, dump(named))
        files.write_json(folder / rundir.ENVIRONMENT, described)
        attempt.set_status("running")
    if rank.ranks > 1:
        dist.broadcast(number, src=0)
    attempt.number = int(number.item())
    stop.before_leaving = partial(attempt.last_word, "stopped")
    return attempt


def build(config: RunConfig, attempt: Attempt, rank: Rank, index: Index, parent: Path | None, stop: StopRequest) -> Run:
    """The run with its model built, its parent's weights taken over and its newest checkpoint loaded."""
    train_config = config.train
    images = stage_images(train_config, index.samples)
    assert images is not None
    share = share_of(config, rank.ranks)
    steps = images // train_config.global_batch
    classes = len(index.classes)

    engine = build_engine(config, rank)

    def fill(objective: nn.Module) -> None:
        initialize(objective, config.seed)
        if parent is not None:
            transfer(load_file(parent), objective.get_submodule("module"), head=True)  # one study, the same classes

    engine.prepare(build_on_meta(config.encoder_config(), config.objective_config(classes)), steps, fill)
    run = Run(
        config=config,
        attempt=attempt,
        index=index,
        cost=cost(config, index.samples, classes),
        engine=engine,
        stop=stop,
        metrics=Records(attempt, rundir.METRICS, rundir.METRIC_KEYS),
        inputs=InputPipeline(config, index, engine.device),
        steps=steps,
        micro_batch=share.micro_batch,
        accumulation=share.accumulation,
        saver=Saver(attempt, train_config),
        side=SideGroup(),
    )
    resumed = checkpoint.load_latest(attempt.folder, engine.state())
    if resumed is not None:
        run.counters, run.saver.newest = resumed, resumed.step
    elif train_config.branched_at:
        run.counters = checkpoint.load(branching_point(config, attempt.folder), engine.state())
        run.counters.gpu_seconds = 0.0  # those are the trunk's
    run.health.restart(run.counters.losses)
    engine.loaded()
    return run
