"""What is held out of the training split: a function of index and class alone, balanced, and never trained on."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config import Augmentation
from data.holdout import Part
from data.index import read_index, read_samples
from data.stream import open_evaluation, open_stream
from scaling.errors import UserError

PLAIN = Augmentation(image_size=16)
FRACTION = 0.1


@given(st.lists(st.integers(0, 6), min_size=1, max_size=300), st.floats(0.01, 0.99))
def test_two_sides_are_a_balanced_division(labels: list[int], fraction: float) -> None:
    given_labels = np.array(labels)
    out = Part(fraction, held_out=True).samples(given_labels)
    rest = Part(fraction, held_out=False).samples(given_labels)
    assert sorted([*out.tolist(), *rest.tolist()]) == list(range(len(labels)))
    assert (np.diff(out) > 0).all() and (np.diff(rest) > 0).all()
    for label in set(labels):
        count, held = labels.count(label), int((given_labels[out] == label).sum())
        assert abs(held - fraction * count) <= 1
        assert held == 0 if count == 1 else 1 <= held < count


@given(st.permutations(list(range(5))), st.integers(20, 60))
def test_names_of_classes_play_no_part(names: list[int], each: int) -> None:
    """A class is held out by the hashes of its own indices, whatever number it has."""
    labels = np.arange(5 * each) % 5
    renamed = np.array(names)[labels]
    part = Part(FRACTION, held_out=True)
    assert (part.samples(labels) == part.samples(renamed)).all()


def test_a_larger_fraction_holds_out_more_of_the_same() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    small, large = (set(Part(fraction, held_out=True).samples(labels).tolist()) for fraction in (0.05, 0.2))
    assert small < large
    # By hash, not by place: every tenth of the split gives some.
    assert set(np.array(sorted(large)) // 100) == set(range(10))


def test_streams_of_the_two_sides_never_meet(shards: Path) -> None:
    """An epoch of training is every remaining image once; evaluation, on any ranks, every held-out image once."""
    labels = read_samples(shards / "train" / "samples.npy", read_index(shards / "train"))["label"]
    rest, out = (Part(FRACTION, held_out=side).samples(labels) for side in (False, True))
    assert (len(rest), len(out)) == (54, 6)
    part = Part(FRACTION, held_out=False)
    stream = open_stream(shards, PLAIN, global_batch=6, micro_batch=6, seed=1, lanes=3, part=part)
    epoch = [sample for batch in islice(stream, 54 // 6) for sample in batch.samples.tolist()]
    assert sorted(epoch) == rest.tolist()
    for ranks in (1, 4):
        found = [
            (sample, label)
            for rank in range(ranks)
            for batch in open_evaluation(
                shards, PLAIN, batch=4, rank=rank, ranks=ranks, split="train", part=Part(FRACTION, held_out=True)
            )
            for sample, label in zip(batch.samples.tolist(), batch.labels.tolist(), strict=True)
        ]
        assert found == [(sample, labels[sample]) for sample in out.tolist()]


def test_a_resumed_stream_continues_the_same_part(shards: Path) -> None:
    part = Part(FRACTION, held_out=False)
    options = {"global_batch": 12, "seed": 1, "lanes": 3, "part": part}
    whole = [batch.samples.tolist() for batch in islice(open_stream(shards, PLAIN, micro_batch=12, **options), 30)]
    later = open_stream(shards, PLAIN, micro_batch=6, images_seen=240, **options)
    found = [sample for batch in islice(later, 20) for sample in batch.samples.tolist()]
    assert found == [sample for samples in whole[20:30] for sample in samples]


def test_an_unreadable_image_is_not_replaced_by_one_held_out(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    index = read_index(copy / "train")
    records = read_samples(copy / "train" / "samples.npy", index)
    rest = Part(FRACTION, held_out=False).samples(records["label"])
    out = set(range(index.samples)) - set(rest.tolist())
    spoilt = next(sample for sample in rest.tolist() if sample + 1 in out and sample // 10 == (sample + 1) // 10)
    assert index.shard_samples.tolist() == [10] * 6
    with (copy / "train" / index.shards[spoilt // 10].name).open("r+b") as file:
        file.seek(int(records[spoilt]["offset"]))
        file.write(b"\0" * int(records[spoilt]["size"]))
    part = Part(FRACTION, held_out=False)
    stream = open_stream(copy, PLAIN, global_batch=6, micro_batch=6, seed=1, lanes=3, part=part)
    batches = list(islice(stream, 54 // 6))
    assert sum(len(batch.skipped) for batch in batches) == 1
    assert not out & {sample for batch in batches for sample in batch.samples.tolist()}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_part_is_a_proper_part(fraction: float) -> None:
    with pytest.raises(UserError, match="held_out"):
        Part(fraction, held_out=True)
