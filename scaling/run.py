"""One run from its config to its summary: claim the folder, build, resume, train, evaluate, export, sum up."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from data.batch import Batch
from data.holdout import Part
from data.index import Index, read_index, split_folder
from data.stream import open_stream
from models.build import build_on_meta
from models.config import MAEConfig
from models.initialize import initialize
from models.transfer import transfer
from scaling import checkpoint, endings, files, rundir
from scaling.attempt import Attempt, Superseded
from scaling.card import write_card
from scaling.config import RunConfig, augmentation, stage_images
from scaling.cost import Cost, cost
from scaling.engines import build_engine
from scaling.engines.base import Engine
from scaling.environment import Rank, describe
from scaling.errors import UserError
from scaling.evaluate import evaluate, require_test_sets, was_cut
from scaling.health import Health
from scaling.inputs import InputPipeline
from scaling.metrics import Records
from scaling.ranktimes import RankTimes
from scaling.reading import dump
from scaling.requirements import require_split, split_index
from scaling.saver import Saver
from scaling.share import share_of
from scaling.sidegroup import SideGroup
from scaling.steplog import StepLog
from scaling.steps import Readback, StepClock
from scaling.stop import Stopped, StopRequest
from scaling.study import identity
from scaling.summary import sum_up
from scaling.trace import Trace
from scaling.train import train
from scaling.watchdog import Watchdog
from scaling.weights import WEIGHTS, export

T = TypeVar("T")
ANOTHER_RANK = "another rank was asked to stop"


@dataclass
class Run:
    """A run under way on this rank: what it is, where it stands and what it works with."""

    config: RunConfig
    attempt: Attempt
    index: Index
    cost: Cost
    engine: Engine
    stop: StopRequest
    metrics: Records
    inputs: InputPipeline
    steps: int
    micro_batch: int
    accumulation: int
    saver: Saver
    side: SideGroup
    counters: checkpoint.Counters = field(default_factory=checkpoint.Counters)

    def __post_init__(self) -> None:
        faults = self.config.faults
        self.clock = StepClock()
        self.readback = Readback(self.engine.device)
        self.log = StepLog(self)
        self.health = Health(faults, self.counters.losses)
        self.ranktimes = RankTimes(self.attempt, self.side, self.engine.device, faults.timing_every)
        self.trace = Trace(self.attempt.folder, self.engine.rank, wanted=False)
        self.watchdog = Watchdog(self.attempt, self.engine.rank, self.clock, faults.step_timeout)

    @property
    def dataset(self) -> str:
        """What the run's own accuracy is on, as rows of evaluations.jsonl name it."""
        return self.index.source + (", held out" if self.config.data.held_out else "")

    @property
    def part(self) -> Part | None:
        """The side of the training split that is trained on; None for all of it."""
        held_out = self.config.data.held_out
        return Part(held_out, held_out=False) if held_out else None

    @property
    def masked(self) -> int:
        """Tokens that MAE draws its mask over; 0 for other objectives."""
        encoder = self.config.encoder_config()
        is_mae = isinstance(self.config.objective_config(len(self.index.classes)), MAEConfig)
        return (encoder.image_size // encoder.patch_size) ** 2 if is_mae else 0

    @property
    def dropped(self) -> int:
        """Blocks that draw a drop path; 0 when it is off."""
        return self.config.encoder_config().depth if self.config.train.drop_path else 0

    def open_training_stream(self) -> Iterator[Batch]:
        """The training stream from the images already consumed on."""
        config = self.config
        stream = open_stream(
            split_folder(config.data.shards, "train"),
            augmentation(config.train),
            global_batch=config.train.global_batch,
            micro_batch=self.micro_batch,
            seed=config.seed,
            rank=self.engine.rank.rank,
            ranks=self.engine.rank.ranks,
            workers=config.data.workers,
            images_seen=self.counters.consumed,
            lanes=config.data.lanes,
            part=self.part,
        )
        return iter(stream)

    def polled(self, batches: Iterator[T]) -> Iterator[T]:
        """This rank's batches of an evaluation; all ranks leave at the same one when any was asked to stop.

        A rank that has fewer batches goes on voting until the last has none left. Raises Stopped.
        """
        batch = next(batches, None)
        while True:
            going, stopping = self.side.any(batch is not None, self.stop.requested())
            if stopping:
                raise Stopped(f"{self.stop.reason or ANOTHER_RANK} during evaluation")
            if not going:
                self.watchdog.pause()  # fitting a probe takes what it takes
                return
            self.watchdog.beat()
            if batch is not None:
                yield batch
                batch = next(batches, None)

    def commit(self) -> None:
        """The state as it stands, on the disk when this returns; nothing to do where it is there already."""
        self.saver.commit(self.engine.state(), self.counters)


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


def execute(config: RunConfig, folder: Path, *, profile: bool = False) -> Path:
    """Carries the run in `folder` to its summary and returns the summary's path; resumes what was interrupted.

    `profile` traces some steps (`scaling.trace`).

    Raises Stopped when asked to stop (state committed), Superseded when a newer attempt exists, UserError for input
    that cannot work. status.json tells the same.
    """
    summary = folder / rundir.SUMMARY
    if summary.is_file():
        return summary
    rank = Rank.from_environment()
    attempt: Attempt | None = None
    with StopRequest(config.resources.grace) as stop:
        try:
            rank.join_others()
            index, parent = check_inputs(config, folder, rank.ranks)
            attempt = claim(config, folder, rank, stop)
            run = build(config, attempt, rank, index, parent, stop)
            run.trace = Trace(folder, rank, wanted=profile)
            carry_out(run)
            rank.leave()
        except Superseded:
            raise
        except Stopped as stopped:
            assert attempt is not None
            endings.record_stop(attempt, str(stopped))
            rank.leave()
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again
            ending = endings.record_failure(folder, rank, attempt, error)
            try:
                if ending is error:
                    raise
                raise ending from error
            finally:
                del ending  # else error and frame would hold each other, and the frame the loader's workers
    return summary


def carry_out(run: Run) -> None:
    """Trains, evaluates, exports and sums up."""
    announce(run)
    try:
        if was_cut(run):
            evaluate(run, finished=False)
        train(run)
        evaluations = evaluate(run)
    except Stopped:
        run.side.settle()
        run.commit()  # an evaluation may come between two checkpoints
        raise
    finally:
        run.trace.close()
        run.watchdog.close()
        run.saver.close()
        run.engine.close()
    export(run)
    if run.attempt.writes:
        folder, summary = run.attempt.folder, sum_up(run, evaluations)
        run.attempt.check()
        write_card(folder, summary)
        files.write_json(folder / rundir.SUMMARY, summary)  # last: with it the run is completed, and never repeated
    run.attempt.set_status("completed", step=run.counters.step)


def announce(run: Run) -> None:
    """Commits a new run's first state, which tries the disk before any work is done, and says what a commit costs."""
    if run.saver.newest < 0:
        run.commit()
    run.attempt.goes_on_from(run.counters.step)
    if not run.attempt.writes:
        return
    seconds = checkpoint.seconds_of(checkpoint.at_step(run.attempt.folder, run.counters.step))
    grace = run.config.resources.grace
    print(f"attempt {run.attempt.number} from step {run.counters.step} of {run.steps}", flush=True)
    if seconds is None:
        return
    print(f"a commit takes {seconds:.2g} s (measured at that step); a stop has {grace:g} s", flush=True)
    if 2 * seconds > grace:  # a stop may find a save under way
        print(
            f"warning: a stop may need {2 * seconds:.0f} s, but resources.grace is {grace:g} s: the last steps may be "
            "lost; ask the site for a longer grace time",
            file=sys.stderr,
        )


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
