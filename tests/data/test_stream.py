"""The stream is one sequence, whatever reads it: ranks, workers, micro-batches, restarts."""

from __future__ import annotations

import math
import os
import shutil
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data.stream
from data.batch import Batch
from data.config import Augmentation
from data.index import read_index, read_samples
from data.pack import pack
from data.store import Store
from data.stream import open_evaluation, open_stream
from scaling.errors import UserError
from tests.data.conftest import write_images

AUGMENTATION = Augmentation(image_size=16, randaugment="rand-m9-mstd0.5-inc1", erasing=0.25)
PLAIN = Augmentation(image_size=16)
GLOBAL_BATCH = 24


def steps(
    shards: Path,
    count: int,
    *,
    ranks: int = 1,
    batch: int = GLOBAL_BATCH,
    micro: int = GLOBAL_BATCH,
    seen: int = 0,
    augmentation: Augmentation = PLAIN,
    workers: int = 0,
    lanes: int = 8,
) -> list[list[Batch]]:
    """For each of `count` optimiser steps, the micro-batches of all ranks."""
    turns = batch // (ranks * micro)
    streams = [
        open_stream(
            shards,
            augmentation,
            global_batch=batch,
            micro_batch=micro,
            seed=5,
            rank=rank,
            ranks=ranks,
            workers=workers,
            images_seen=seen,
            lanes=lanes,
        )
        for rank in range(ranks)
    ]
    taken = [list(islice(stream, count * turns)) for stream in streams]
    return [[batch for rank in taken for batch in rank[step * turns : (step + 1) * turns]] for step in range(count)]


def joined(found: list[list[Batch]]) -> dict[str, torch.Tensor]:
    """All images of some steps in the order of their positions."""
    batches = [batch for step in found for batch in step]
    positions = torch.cat([batch.positions for batch in batches])
    order = torch.argsort(positions)
    parts = {name: torch.cat([getattr(batch, name) for batch in batches])[order] for name in FIELDS}
    return {"positions": positions[order], **parts}


FIELDS = ("images", "labels", "flips", "samples")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


class Life(NamedTuple):
    """One start of the job: it is killed after `count` steps that were saved and `lost` that were not."""

    ranks: int
    micro: int
    workers: int
    count: int
    lost: int


@st.composite
def jobs(draw: st.DrawFn) -> tuple[int, list[Life]]:
    """(global batch, lives): any ranks from 1 to 16, changing from life to life; worker processes in small lives."""
    ranks = draw(st.lists(st.integers(1, 16), min_size=1, max_size=3))
    batch = math.lcm(*ranks[:2]) * draw(st.integers(1, 2))
    lives = []
    for number in ranks:
        number = number if batch % number == 0 else 1
        micro = draw(st.sampled_from([m for m in range(1, 9) if batch // number % m == 0]))
        workers = draw(st.integers(0, 4)) if number <= 2 else 0
        lives.append(Life(number, micro, workers, draw(st.integers(1, 3)), draw(st.integers(0, 2))))
    return batch, lives


@pytest.mark.slow
@settings(deadline=None, max_examples=400 if os.environ.get("ARMSCALE_FULL") else 20)
@given(samples=st.integers(1, 90), shard_samples=st.integers(1, 30), job=jobs())
def test_any_ranks_workers_and_kills_continue_one_sequence(
    samples: int, shard_samples: int, job: tuple[int, list[Life]]
) -> None:
    batch, lives = job
    with TemporaryDirectory() as folder:
        write_images(Path(folder) / "images", 1, samples, size=(20, 24))
        shards = Path(folder) / "shards"
        pack(f"imagefolder:{folder}/images", shards, shard_samples=shard_samples)
        total = sum(life.count for life in lives)
        expected = joined(steps(shards, total, batch=batch, micro=1, augmentation=AUGMENTATION))
        found: list[list[Batch]] = []
        for ranks, micro, workers, count, lost in lives:
            here = {"batch": batch, "ranks": ranks, "micro": micro, "workers": workers, "augmentation": AUGMENTATION}
            life = steps(shards, count + lost, seen=batch * len(found), **here)[:count]  # type: ignore[arg-type]
            assert {one.images_seen for one in life[-1]} == {batch * (len(found) + count)}
            found += life
        together = joined(found)
    assert_same(together, expected)
    # Once an epoch; lanes differ by one image at most, so within one step some samples may be an epoch ahead.
    counts = torch.bincount(together["samples"], minlength=samples)
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_change_nothing(shards: Path, workers: int) -> None:
    expected = joined(steps(shards, 4, micro=4, augmentation=AUGMENTATION))
    assert_same(joined(steps(shards, 4, micro=4, augmentation=AUGMENTATION, workers=workers)), expected)


def test_every_sample_once_an_epoch_with_its_own_label(shards: Path) -> None:
    found = joined(steps(shards, 5))  # 120 images: two epochs of 60
    labels = read_samples(shards / "train" / "samples.npy", read_index(shards / "train"))["label"]
    for epoch in (0, 1):
        samples = found["samples"][60 * epoch : 60 * (epoch + 1)]
        # Positions are in steps of 24, so an epoch ends inside one; lanes differ by one image at most.
        assert len(set(samples.tolist())) >= 60 - 8
    assert sorted(found["samples"].tolist()) == sorted([*range(60)] * 2)
    assert found["labels"].tolist() == labels[found["samples"].numpy()].tolist()


def test_pixels_change_with_the_epoch_and_the_seed(shards: Path) -> None:
    found = joined(steps(shards, 5))
    first, second = (np.flatnonzero(found["samples"] == 7)[turn] for turn in (0, 1))
    assert not torch.equal(found["images"][first], found["images"][second])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"global_batch": 10, "micro_batch": 4}, "global_batch"),
        ({"global_batch": 8, "micro_batch": 4, "ranks": 3}, "global_batch"),
        ({"global_batch": 8, "micro_batch": 4, "images_seen": 12}, "images_seen"),
        ({"global_batch": 8, "micro_batch": 4, "rank": 2, "ranks": 2}, "rank"),
    ],
)
def test_what_does_not_divide_is_refused(shards: Path, arguments: dict[str, int], named: str) -> None:
    with pytest.raises(UserError) as caught:
        open_stream(shards, PLAIN, seed=0, **arguments)  # type: ignore[arg-type]
    assert caught.value.field == named


@given(ranks=st.integers(1, 20), batch=st.integers(1, 9))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_evaluation_gives_every_sample_once(shards: Path, ranks: int, batch: int) -> None:
    samples = [
        sample
        for rank in range(ranks)
        for found in open_evaluation(shards, PLAIN, batch=batch, rank=rank, ranks=ranks)
        for sample in found.samples.tolist()
    ]
    assert samples == list(range(15))


def damaged(shards: Path, folder: Path, samples: list[int]) -> Path:
    """A copy whose given training samples are no images any more."""
    copy = Path(shutil.copytree(shards, folder / "damaged"))
    index = read_index(copy / "train")
    records = read_samples(copy / "train" / "samples.npy", index)
    first = np.cumsum(index.shard_samples) - index.shard_samples
    for sample in samples:
        shard = int(np.searchsorted(first, sample, side="right")) - 1
        path = copy / "train" / index.shards[shard].name
        data = bytearray(path.read_bytes())
        start, size = int(records[sample]["offset"]), int(records[sample]["size"])
        data[start : start + size] = bytes(size)
        path.write_bytes(data)
    return copy


def test_a_corrupt_sample_is_replaced_by_its_neighbour_at_any_world_size(shards: Path, tmp_path: Path) -> None:
    copy = damaged(shards, tmp_path, [19])  # the last of its shard: round to the first, 10
    expected = joined(steps(shards, 3))
    alone = steps(copy, 3)
    found = joined(alone)
    assert_same(joined(steps(copy, 3, ranks=4, micro=3)), found)
    assert found["samples"].tolist() == [10 if sample == 19 else sample for sample in expected["samples"].tolist()]
    (skipped,) = {text for step in alone for batch in step for text in batch.skipped}
    assert skipped.startswith("shard-000001.tar, class-")


def test_too_many_corrupt_samples_stop_with_their_list(shards: Path, tmp_path: Path) -> None:
    copy = damaged(shards, tmp_path, [3, 33])
    with pytest.raises(UserError, match=r"2 samples cannot be read: shard-000000\.tar, .*; shard-000003\.tar, "):
        steps(copy, 4)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_list_comes_through_worker_processes(workers: int, shards: Path, tmp_path: Path) -> None:
    copy = damaged(shards, tmp_path, list(range(0, 60, 3)))
    with pytest.raises(UserError, match="samples cannot be read: shard-"):
        steps(copy, 4, workers=workers)


def test_a_flipped_byte_that_would_decode_is_met_as_corrupt(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    store = Store(copy / "train")
    offset, size = (int(store.samples[7][name]) for name in ("offset", "size"))
    path = copy / "train" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 4
    path.write_bytes(data)
    expected = joined(steps(shards, 3))
    found = steps(copy, 3)
    assert joined(found)["samples"].tolist() == [
        8 if sample == 7 else sample for sample in expected["samples"].tolist()
    ]
    (skipped,) = {text for step in found for batch in step for text in batch.skipped}
    assert "crc32" in skipped


def test_a_corrupt_evaluation_image_is_an_error(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    path = copy / "val" / "shard-000000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"shard-000000\.tar"):
        list(open_evaluation(copy, PLAIN, batch=4))


def test_a_shard_cut_short_is_met_as_corrupt_samples(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    path = copy / "train" / "shard-000004.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"samples cannot be read: shard-000004\.tar"):
        steps(copy, 4)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_without_a_readable_image_stops_though_fewer_than_are_allowed(
    workers: int, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.stream, "MAX_SKIPPED", 1.0)  # as 1000 a shard are less than 0.1 % of ImageNet
    with pytest.raises(UserError, match=r"10 samples cannot be read: shard-000002\.tar, ") as caught:
        steps(damaged(shards, tmp_path, list(range(20, 30))), 4, workers=workers)
    assert caught.value.why.count("shard-000002.tar") == 10


def test_one_readable_image_stands_for_its_whole_shard(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.stream, "MAX_SKIPPED", 1.0)
    expected = joined(steps(shards, 4))["samples"].tolist()
    copy = damaged(shards, tmp_path, [*range(20, 24), *range(25, 30)])
    found = joined(steps(copy, 4))
    assert found["samples"].tolist() == [24 if 20 <= sample < 30 else sample for sample in expected]
    resumed = joined(steps(copy, 2, ranks=2, micro=4, seen=2 * GLOBAL_BATCH))
    assert_same(resumed, {name: values[2 * GLOBAL_BATCH :] for name, values in found.items()})


def test_images_of_another_size_than_a_fixed_crop(shards: Path) -> None:
    with pytest.raises(UserError, match="48 x 40"):
        steps(shards, 1, augmentation=Augmentation(image_size=32, crop="none", eval_resize="none"))
    with pytest.raises(UserError, match="48 x 40"):
        steps(shards, 1, augmentation=Augmentation(image_size=64, crop="pad"))
