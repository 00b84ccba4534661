"""A run under way on one rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from data.batch import Batch
from data.holdout import Part
from data.index import Index, split_folder
from data.stream import open_stream
from models.config import MAEConfig
from scaling import checkpoint
from scaling.attempt import Attempt
from scaling.config import RunConfig, augmentation
from scaling.cost import Cost
from scaling.engines.base import Engine
from scaling.health import Health
from scaling.inputs import InputPipeline
from scaling.metrics import Records
from scaling.ranktimes import RankTimes
from scaling.saver import Saver
from scaling.sidegroup import SideGroup
from scaling.steplog import StepLog
from scaling.steps import Readback, StepClock
from scaling.stop import ANOTHER_RANK, Stopped, StopRequest
from scaling.trace import Trace
from scaling.watchdog import Watchdog

T = TypeVar("T")


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
