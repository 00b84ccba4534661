"""What is evaluated, and this rank's part of the images that it is evaluated on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.batch import EvaluationBatch, normalize
from data.config import Augmentation
from data.holdout import Part
from data.index import TRAIN, Index, has_split, read_index, split_folder
from data.stream import open_evaluation
from models.arm import ARM
from models.classifier import Classifier
from models.mae import MAE
from scaling.config import RunConfig, augmentation
from scaling.environment import Rank
from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.run import Run
    from scaling.weights import Normalization

TEST = "test"


class Images(NamedTuple):
    """A batch on the device."""

    images: Tensor  # (batch, channels, size, size), normalised as in training
    labels: Tensor  # (batch,)
    samples: Tensor  # (batch,) on the CPU: number of each image in the index of its split


@dataclass(frozen=True)
class Subject:
    """A module in evaluation mode, the data, and how ranks share the work.

    `index` is that of the training split: its classes and normalisation. `folder` is where files go, None on ranks that
    write none. Labels of several ranks' images are never padded or repeated. Where a part of the training split is held
    out, that part is the test split and the rest the training split.
    """

    module: nn.Module
    shards: str
    index: Index
    augmentation: Augmentation
    protocol: str = "finetune"  # of a classification
    batch: int = 256
    workers: int = 0
    rank: Rank = field(default_factory=Rank)
    precision: str = "fp32"
    folder: Path | None = None
    held_out: float = 0.0
    features: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # of the module as it stands, by split
    polled: Callable[[Iterator[EvaluationBatch]], Iterator[EvaluationBatch]] = iter  # may leave between two batches

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return self.rank.device

    def batches(self, split: str = TEST, shards: str = "") -> Iterator[Images]:
        """Every image of a split of `shards` (the subject's own by default) once over all ranks, at centre crop."""
        part = Part(self.held_out, held_out=split == TEST) if self.held_out and not shards else None
        split = TRAIN if part else split
        batches = open_evaluation(
            split_folder(shards or self.shards, split),
            self.augmentation,
            batch=self.batch,
            rank=self.rank.rank,
            ranks=self.rank.ranks,
            workers=self.workers,
            split=split,
            part=part,
        )
        for batch in self.polled(iter(batches)):
            images = normalize(batch.images, self.index.mean, self.index.std, device=self.device)
            yield Images(images, batch.labels.to(self.device, non_blocking=True), batch.samples)

    def first(self, count: int) -> Images:
        """The first test images, however many ranks share the split: for what one rank does alone."""
        alone = dataclasses.replace(
            self, batch=count, polled=iter, rank=dataclasses.replace(self.rank, rank=0, ranks=1)
        )
        return next(alone.batches())

    def autocast(self) -> torch.autocast:
        """bf16 matrix products where the run has them."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over ranks."""
        if self.rank.ranks == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (first dimension) of all ranks, in the order of the ranks, on every rank."""
        if self.rank.ranks == 1:
            return rows
        mine = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.empty_like(mine) for _ in range(self.rank.ranks)]
        dist.all_gather(counts, mine)
        lengths = [int(count) for count in counts]
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def subject_of(run: Run) -> Subject:
    """The run as it stands, to be used inside `engine.evaluating`."""
    config: RunConfig = run.config
    return Subject(
        module=run.engine.module,
        shards=config.data.shards,
        index=run.index,
        augmentation=augmentation(config.train),
        batch=config.train.eval_batch,
        workers=config.data.workers,
        rank=run.engine.rank,
        precision=config.precision,
        folder=run.attempt.folder if run.attempt.writes else None,
        held_out=config.data.held_out,
        polled=run.polled,
    )


def subject_from(
    module: nn.Module,
    shards: str,
    *,
    eval_resize: str = "square",
    batch: int = 256,
    workers: int = 0,
    precision: str = "fp32",
    normalization: Normalization | None = None,
) -> Subject:
    """A module from a file, on this process's ranks and the data in `shards`, whose evaluation split alone may be there
    where nothing is fitted.

    `normalization` is the mean and deviation that the weights know (scaling.weights), by default those of the shards.
    UserError where a classifier knows another number of classes than the data.
    """
    assert isinstance(module, ARM | MAE | Classifier)
    index = read_index(split_folder(shards, TRAIN if has_split(shards, TRAIN) else TEST))
    if normalization is not None:
        index = dataclasses.replace(index, mean=normalization[0], std=normalization[1])
    if isinstance(module, Classifier) and module.config.classes != len(index.classes):
        raise UserError("SHARDS", shards, f"data of {module.config.classes} classes", why=f"{len(index.classes)} there")
    rank = Rank.from_environment()
    if rank.ranks > 1:
        rank.join()
    return Subject(
        module=module.to(rank.device).eval(),
        shards=shards,
        index=index,
        augmentation=Augmentation(image_size=module.encoder.config.image_size, eval_resize=eval_resize),
        batch=batch,
        workers=workers,
        rank=rank,
        precision=precision,
    )
