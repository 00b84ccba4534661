"""Batches of a split for any ranks, workers and micro-batches; the state of the stream is one number, images_seen.

Training: position p of the job's sequence holds the sample that data.order says; optimiser step t takes positions
[t B, (t+1) B), and rank r of R those from t B + r B/R on, in micro-batches. Nothing is dropped or padded, not even at
the end of an epoch. Evaluation: every rank takes one contiguous part of the split, and every sample comes once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from data.augment import EvaluationTransform, TrainTransform
from data.batch import Batch, EvaluationBatch
from data.config import Augmentation
from data.holdout import Part
from data.images import Pixels, UnreadableImageError
from data.index import EVALUATION_SPLITS, TRAIN, split_folder
from data.order import DEFAULT_LANES, Order
from data.processes import exit_with_parent, sheltered, worker_context
from data.remote import CACHE_BYTES, SHARD_CACHE, Location
from data.store import Store
from scaling.errors import UserError

T = TypeVar("T")

PREFETCH = 2  # batches a worker holds ready
READ_AHEAD = 16  # optimiser steps: remote shards are fetched about this long before they are needed
MAX_SKIPPED = 0.001  # part of a split's samples that may turn out unreadable before the stream stops


class Geometry(NamedTuple):
    """Who takes which positions."""

    global_batch: int
    micro_batch: int
    rank: int
    ranks: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches a rank takes in one optimiser step."""
        return self.global_batch // (self.ranks * self.micro_batch)

    def positions(self, number: int) -> NDArray[np.int64]:
        """(micro,) positions of this rank's micro-batch `number`, counted from the start of training."""
        step, turn = divmod(number, self.micro_batches)
        start = step * self.global_batch + (self.rank * self.micro_batches + turn) * self.micro_batch
        return np.arange(start, start + self.micro_batch, dtype=np.int64)


def open_stream(
    shards: Location,
    augmentation: Augmentation,
    *,
    global_batch: int,
    micro_batch: int,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    images_seen: int = 0,
    lanes: int = DEFAULT_LANES,
    part: Part | None = None,
    cache: Path = SHARD_CACHE,
    cache_bytes: int = CACHE_BYTES,
) -> Iterable[Batch]:
    """The endless training batches of one rank, after `images_seen` images of the whole job.

    `shards` is the output of pack or its training split. Any other (ranks, workers, micro_batch) continues the same
    sequence of samples and pixels. With `part` the stream is that side of the split alone. Remote shards are kept in
    `cache` within `cache_bytes`. UserError when the batch does not divide or images_seen is not between two steps.
    """
    geometry = _geometry(global_batch, micro_batch, rank, ranks, images_seen)
    store = Store(split_folder(shards, TRAIN), cache, cache_bytes)
    order = SampleOrder(store, part, global_batch=global_batch, seed=seed, lanes=lanes)
    dataset = _Training(_Images(store, order.kept), order, augmentation, geometry, seed)
    first = images_seen // global_batch * geometry.micro_batches
    return _Batches(dataset, _Count(first), workers)


def open_evaluation(
    shards: Location,
    augmentation: Augmentation,
    *,
    batch: int,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    split: str = EVALUATION_SPLITS[0],
    part: Part | None = None,
    cache: Path = SHARD_CACHE,
    cache_bytes: int = CACHE_BYTES,
) -> Iterable[EvaluationBatch]:
    """The samples of rank `rank` in batches of at most `batch`: over all ranks every sample exactly once, no padding.

    Ranks differ by at most one sample, so their numbers of batches may differ too. With `part`, the samples are those
    of that side of the split.
    """
    if batch < 1 or not 0 <= rank < ranks:
        raise UserError("batch, rank, ranks", (batch, rank, ranks), "batch >= 1 and 0 <= rank < ranks")
    store = Store(split_folder(shards, split), cache, cache_bytes)
    kept = None if part is None else part.samples(store.samples["label"])
    samples = store.index.samples if kept is None else len(kept)
    start, end = rank * samples // ranks, (rank + 1) * samples // ranks
    dataset = _Evaluation(store, kept, augmentation, start, end, batch)
    return _Batches(dataset, range(-(-(end - start) // batch)), workers)


def _geometry(global_batch: int, micro_batch: int, rank: int, ranks: int, images_seen: int) -> Geometry:
    if not 0 <= rank < ranks:
        raise UserError("rank", rank, f"0 to {ranks - 1}")
    if global_batch < 1 or micro_batch < 1 or global_batch % (ranks * micro_batch):
        valid = f"a multiple of ranks x micro_batch = {ranks} x {micro_batch}"
        raise UserError("global_batch", global_batch, valid)
    if images_seen < 0 or images_seen % global_batch:
        raise UserError("images_seen", images_seen, f"a multiple of global_batch ({global_batch})")
    return Geometry(global_batch, micro_batch, rank, ranks)


class _Count:
    """The numbers from `first` on, without end; a sampler for DataLoader."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        number = self.first
        while True:
            yield number
            number += 1


def unreadable_allowed(samples: int) -> int:
    """How many samples of a split may turn out unreadable before training on it stops."""
    return max(1, int(MAX_SKIPPED * samples))


def too_many_unreadable(location: Location, messages: Iterable[str]) -> UserError:
    """The error that stops it, with the list."""
    listed = sorted(messages)
    why = f"{len(listed)} samples cannot be read: " + "; ".join(listed[:20])
    return UserError("shards", str(location), "shards that `armscale data verify` passes", why=why)


class SampleOrder:
    """Which samples of a store, or of one part of it, the training stream gives before unreadable ones are replaced."""

    def __init__(self, store: Store, part: Part | None, *, global_batch: int, seed: int, lanes: int) -> None:
        self.kept = None if part is None else part.samples(store.samples["label"])
        counts = store.index.shard_samples
        if self.kept is not None:
            counts = np.diff(np.append(np.searchsorted(self.kept, store.first), len(self.kept)))
        self.order = Order(counts, global_batch, seed, lanes)

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(epochs, samples of the store) at these positions, counted from 0 over the whole training."""
        epochs, numbers = self.order.at(positions)
        return epochs, numbers if self.kept is None else self.kept[numbers]


class _Images:
    """The images of a store, or of one part of them (`kept`, ascending).

    Unreadable samples are replaced by the next of the same shard, which is the same on every rank.
    """

    def __init__(self, store: Store, kept: NDArray[np.int64] | None) -> None:
        self.store = store
        self.kept = kept
        self.unreadable: dict[int, str] = {}
        self.allowed = unreadable_allowed(store.index.samples)

    def neighbour(self, sample: int) -> int:
        """The next image of the same shard, round its end."""
        shard = self.store.shard_of(sample)
        first, count = int(self.store.first[shard]), self.store.index.shards[shard].samples
        if self.kept is None:
            return first + (sample - first + 1) % count
        low, at, high = np.searchsorted(self.kept, (first, sample, first + count))
        return int(self.kept[low + (at - low + 1) % (high - low)])

    def skip(self, sample: int, error: Exception) -> str:
        """Notes an unreadable sample and names it; UserError when there are too many."""
        message = self.unreadable.setdefault(sample, f"{self.store.name(sample)}: {error}")
        if len(self.unreadable) > self.allowed:
            raise too_many_unreadable(self.store.location, self.unreadable.values())
        return message


class _Training(Dataset[Batch]):
    """Micro-batch `number` of one rank, by arithmetic."""

    def __init__(
        self, images: _Images, order: SampleOrder, augmentation: Augmentation, geometry: Geometry, seed: int
    ) -> None:
        self.images = images
        self.order = order
        self.geometry = geometry
        self.transform = TrainTransform(augmentation, seed, images.store.index.mean, images.store.index.std)

    def __getitem__(self, number: int) -> Batch:
        positions = self.geometry.positions(number)
        epochs, samples = self.order.at(positions)
        if self.images.store.cache is not None:
            later = self.geometry.positions(number + READ_AHEAD * self.geometry.micro_batches)
            self.images.store.expect(self.order.at(later)[1])
        numbers = np.empty((len(samples), self.transform.count))
        for epoch in np.unique(epochs):
            numbers[epochs == epoch] = self.transform.draws(int(epoch), samples[epochs == epoch])
        size = self.transform.augmentation.image_size
        images = np.empty((len(samples), 3, size, size), np.uint8)
        labels = np.empty(len(samples), np.int64)
        skipped: list[str] = []
        for row, sample in enumerate(samples.tolist()):
            pixels, labels[row], samples[row] = self._image(int(epochs[row]), sample, numbers[row], skipped)
            images[row] = pixels.transpose(2, 0, 1)
        return Batch(
            images=torch.from_numpy(images),
            labels=torch.from_numpy(labels),
            positions=torch.from_numpy(positions),
            flips=torch.from_numpy(self.transform.flipped(numbers)),
            samples=torch.from_numpy(samples),
            epoch=int(epochs[0]),
            images_seen=(number // self.geometry.micro_batches + 1) * self.geometry.global_batch,
            skipped=tuple(skipped),
        )

    def _image(
        self, epoch: int, sample: int, numbers: NDArray[np.float64], skipped: list[str]
    ) -> tuple[Pixels, int, int]:
        """(pixels, label, sample) of a sample, or of the first readable one after it in its shard.

        UserError where the shard has none.
        """
        first = sample
        while True:
            try:
                data, label = self.images.store.read_checked(sample)
                return self.transform(data, numbers, epoch, sample), label, sample
            except UnreadableImageError as error:
                skipped.append(self.images.skip(sample, error))
                sample = self.images.neighbour(sample)
                if sample == first:  # round the shard
                    store = self.images.store
                    raise too_many_unreadable(store.location, self.images.unreadable.values()) from None


class _Evaluation(Dataset[EvaluationBatch]):
    """Batch `number` of the samples from `start` to `end`, counted among those in `kept` where that is given."""

    def __init__(
        self,
        store: Store,
        kept: NDArray[np.int64] | None,
        augmentation: Augmentation,
        start: int,
        end: int,
        batch: int,
    ) -> None:
        self.store = store
        self.kept = kept
        self.transform = EvaluationTransform(augmentation)
        self.start, self.end, self.batch = start, end, batch

    def __getitem__(self, number: int) -> EvaluationBatch:
        first = self.start + number * self.batch
        samples = np.arange(first, min(first + self.batch, self.end), dtype=np.int64)
        if self.kept is not None:
            samples = self.kept[samples]
        size = self.transform.augmentation.image_size
        images = np.empty((len(samples), 3, size, size), np.uint8)
        labels = np.empty(len(samples), np.int64)
        for row, sample in enumerate(samples.tolist()):
            try:
                data, labels[row] = self.store.read_checked(sample)
                images[row] = self.transform(data).transpose(2, 0, 1)
            except UnreadableImageError as error:
                # An accuracy over other images would look like one over all of them.
                why = f"{self.store.name(sample)}: {error}"
                raise UserError("shards", str(self.store.location), "readable evaluation images", why=why) from None
        return EvaluationBatch(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(samples))


class _Batches(Generic[T]):
    """Numbers to batches, in this process or in worker processes, always in the order of the numbers."""

    def __init__(self, dataset: Dataset[T], numbers: Iterable[int], workers: int) -> None:
        self.dataset, self.numbers, self.workers = dataset, numbers, workers

    def __iter__(self) -> Iterator[T]:
        if self.workers == 0:
            for number in self.numbers:
                yield self.dataset[number]
            return
        loader = DataLoader(
            _Answering(self.dataset),
            batch_size=None,
            sampler=self.numbers,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            prefetch_factor=PREFETCH,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
            multiprocessing_context=worker_context(),
        )
        with sheltered():
            batches = iter(loader)
        for batch in batches:
            if isinstance(batch, UserError):
                try:
                    raise batch
                finally:
                    del batch  # else error and frame would hold each other, and the frame its workers
            yield batch


class _Answering(Dataset[T | UserError]):
    """Gives a user's error back as a value: DataLoader makes a RuntimeError of what a worker raises."""

    def __init__(self, dataset: Dataset[T]) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> T | UserError:
        try:
            return self.dataset[number]
        except UserError as error:
            return error


def _as_it_is(batch: T) -> T:
    return batch


def _start_worker(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # DataLoader has just set a handler that ends the worker
        signal.signal(number, signal.SIG_IGN)
    exit_with_parent()
