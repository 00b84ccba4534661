"""Sizes of real studies: an index of 14 million samples, and 60,000 real JPEGs."""

from __future__ import annotations

import json
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data.config import Augmentation
from data.index import SAMPLE, ImageFacts, Index, Shard, read_index, to_json
from data.order import Order
from data.pack import pack
from data.store import Store
from data.stream import open_evaluation, open_stream
from data.verify import verify

REAL = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"


def anonymous_bytes() -> int:
    """Memory of this process that no file backs, so that no other process can share it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def test_fourteen_million_samples_take_little_memory(tmp_path: Path) -> None:
    shards, each = 14_000, 1000
    samples = np.lib.format.open_memmap(tmp_path / "samples.npy", mode="w+", dtype=SAMPLE, shape=(shards * each,))
    samples["offset"][-1] = 4711
    samples.flush()
    size = (tmp_path / "samples.npy").stat().st_size
    index = Index(
        split="train",
        source="synthetic",
        classes=("a", "b"),
        samples=shards * each,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        fingerprint="0" * 16,
        samples_bytes=size,
        samples_sha256="0" * 64,
        images=ImageFacts((500, 500), (375, 375), {"jpg": shards * each}),
        shards=tuple(Shard(f"shard-{number:06d}.tar", each, 1, "0" * 64) for number in range(shards)),
        left_out=(),
        request={},
    )
    (tmp_path / "index.json").write_text(json.dumps(to_json(index)))
    del samples, index

    before = anonymous_bytes()
    store = Store(tmp_path)
    order = Order(store.index.shard_samples, 1024, 0, 64)
    seen = []
    for step in (0, 1, 10**6, 10**6 + 7):  # a seek is arithmetic: nothing in between is visited
        _, found = order.at(np.arange(1024 * step, 1024 * (step + 1)))
        seen.append(store.samples[found]["offset"])
    assert anonymous_bytes() - before < 50 * 2**20
    assert store.samples[shards * each - 1]["offset"] == 4711
    assert len(seen) == 4


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="the CIFAR-10 JPEGs are not beside the checkout")
def test_sixty_thousand_real_jpegs(tmp_path: Path) -> None:
    with tarfile.open(REAL) as tar:
        tar.extractall(tmp_path / "images", filter="data")
    (root,) = [path.parent for path in (tmp_path / "images").rglob("train")]
    packing = pack(f"imagefolder:{root}", tmp_path / "shards", workers=2)
    assert {name: index.samples for name, index in packing.indexes.items()} == {"train": 50_000, "test": 10_000}
    assert packing.indexes["train"].image_size == 32
    np.testing.assert_allclose(packing.indexes["train"].mean, (0.4914, 0.4822, 0.4465), atol=2e-3)  # as published
    for split in ("train", "test"):
        assert verify(tmp_path / "shards" / split, decode_images=True, workers=2) == []
    augmentation = Augmentation(image_size=32, crop="pad", eval_resize="none")
    stream = open_stream(tmp_path / "shards", augmentation, global_batch=500, micro_batch=250, seed=0, ranks=2)
    half = np.concatenate([batch.samples.numpy() for batch in islice(stream, 100)])
    other = open_stream(tmp_path / "shards", augmentation, global_batch=500, micro_batch=250, seed=0, rank=1, ranks=2)
    rest = np.concatenate([batch.samples.numpy() for batch in islice(other, 100)])
    assert np.array_equal(np.sort(np.concatenate([half, rest])), np.arange(50_000))
    counts = np.bincount(
        np.concatenate(
            [batch.labels.numpy() for batch in open_evaluation(tmp_path / "shards", augmentation, batch=256)]
        )
    )
    assert counts.tolist() == [1000] * 10
    assert len(read_index(tmp_path / "shards" / "train").shards) == 50
