"""Shards behind URLs: real commands, a real HTTP server, real files in a bounded cache."""

from __future__ import annotations

import fcntl
import hashlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import data.stream
from data import remote
from data.config import Augmentation
from data.index import read_index, split_folder
from data.pack import pack
from data.remote import ShardCache, join
from data.store import Store
from data.stream import open_evaluation, open_stream
from scaling.errors import UserError
from tests.data.conftest import write_images

PLAIN = Augmentation(image_size=16)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACK_OFF", 0.0)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def address(shards: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shards)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_locations() -> None:
    assert join("http://host/out/", "train") == "http://host/out/train"
    assert join("pipe:cat /out/{} | gunzip", "train") == "pipe:cat /out/train/{} | gunzip"
    assert join(Path("out"), "train") == join("out", "train") == Path("out/train")


@pytest.mark.parametrize("kind", ["pipe", "braces"])
def test_commands_give_the_same_batches_as_the_folder(kind: str, shards: Path, tmp_path: Path) -> None:
    location = f"pipe:cat {shards}" if kind == "pipe" else f"pipe:cat {shards}/{{}} | cat"
    arguments = {"global_batch": 12, "micro_batch": 12, "seed": 1}
    local = islice(open_stream(shards, PLAIN, **arguments), 6)  # type: ignore[arg-type]
    far = islice(open_stream(location, PLAIN, **arguments, cache=tmp_path), 6)  # type: ignore[arg-type]
    for one, other in zip(local, far, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert sum(len(batch.labels) for batch in open_evaluation(location, PLAIN, batch=4, cache=tmp_path)) == 15


def test_http(address: str, shards: Path, tmp_path: Path) -> None:
    assert split_folder(address, "test") == f"{address}/val"
    assert split_folder(f"{address}/train", "train") == f"{address}/train"
    store = Store(split_folder(address, "train"), tmp_path)
    here = Store(shards / "train")
    assert [store.read(sample) for sample in range(60)] == [here.read(sample) for sample in range(60)]
    with pytest.raises(UserError, match="could not be fetched in 5 attempts"):
        split_folder(f"{address}/nothing", "train")


def test_a_command_that_fails_twice_is_tried_again(shards: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    flaky = f"pipe:echo x >> {count}; test $(wc -l < {count}) -gt 2 && cat {shards}/train/{{}}"
    assert read_index(flaky) == read_index(shards / "train")
    assert len(count.read_text().splitlines()) == 3


def test_bytes_that_are_not_the_shard_are_refused(shards: Path, tmp_path: Path) -> None:
    shard = read_index(shards / "train").shards[0]
    for command, said in (
        (f"head -c 700 {shards}/train/{{}}", "700 bytes arrived"),
        (f"tac {shards}/train/{{}}", "sha256|bytes arrived"),
    ):
        with pytest.raises(UserError, match=said):
            ShardCache(tmp_path).get(f"pipe:{command}", shard.name, shard.bytes, shard.sha256)
    assert not list(tmp_path.glob("*.file"))


def test_the_cache_stays_within_its_bytes(shards: Path, tmp_path: Path) -> None:
    index = read_index(shards / "train")
    largest = max(shard.bytes for shard in index.shards)
    cache = ShardCache(tmp_path, 2 * largest)
    for turn in range(2):
        for shard in index.shards:
            path = cache.get(f"pipe:cat {shards}/train", shard.name, shard.bytes, shard.sha256)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256
            assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) <= cache.limit
        assert cache.fetched == (turn + 1) * sum(shard.bytes for shard in index.shards)
    cache.get(f"pipe:cat {shards}/train", shard.name, shard.bytes, shard.sha256)
    assert cache.fetched == 2 * sum(shard.bytes for shard in index.shards)  # it was still there
    with pytest.raises(UserError, match="at least the size of a shard"):
        ShardCache(tmp_path, 100).get("pipe:cat", shard.name, shard.bytes, shard.sha256)


def test_processes_that_want_the_same_shard_fetch_it_once(shards: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    shard = read_index(shards / "train").shards[0]
    location = f"pipe:echo x >> {count}; sleep 0.2; cat {shards}/train/{{}}"
    caches = [ShardCache(tmp_path / "cache") for _ in range(4)]
    wants = (location, shard.name, shard.bytes, shard.sha256)
    threads = [threading.Thread(target=cache.get, args=wants) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count.read_text().splitlines()) == 1
    assert sorted(cache.fetched for cache in caches) == [0, 0, 0, shard.bytes]


def test_shards_are_fetched_ahead_and_once(shards: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    store = Store(f"pipe:echo {{}} >> {count}; cat {shards}/train/{{}}", tmp_path / "cache")
    store.expect(np.arange(60))
    names = {shard.sha256 for shard in store.index.shards}
    deadline = time.monotonic() + 60
    while not (whole := names <= {path.stem for path in (tmp_path / "cache").glob("*.file")}):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert whole
    store.expect(np.arange(60))
    assert len({store.read(sample)[0] for sample in range(60)}) == 60
    fetched = count.read_text().split()
    assert sorted(name for name in fetched if name.endswith(".tar")) == [shard.name for shard in store.index.shards]


def test_a_fault_met_while_reading_ahead_is_reported_by_the_reader(shards: Path, tmp_path: Path) -> None:
    store = Store(f"pipe:cat {shards}/train/{{}}", tmp_path)
    store.location = "pipe:false"
    store.expect(np.arange(10))
    with pytest.raises(UserError, match="could not be fetched"):
        store.read(0)


def test_what_a_killed_fetch_leaves_is_cleared(shards: Path, tmp_path: Path) -> None:
    index = read_index(shards / "train")
    limit = 2 * max(shard.bytes for shard in index.shards)
    abandoned, under_way = tmp_path / "a.part", tmp_path / "b.part"
    for path in (abandoned, under_way):
        with path.open("wb") as file:
            file.truncate(limit // 2)
    with under_way.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for shard in index.shards:
            ShardCache(tmp_path, limit).get(f"pipe:cat {shards}/train", shard.name, shard.bytes, shard.sha256)
        assert under_way.exists()
    assert not abandoned.exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit


def test_four_nodes_share_the_bytes_and_two_nodes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.stream, "READ_AHEAD", 0)  # its 16 steps would be the whole of the next epoch here
    folder = write_images(tmp_path / "images", 2, 84, size=(16, 16))
    pack(f"imagefolder:{folder}", tmp_path / "shards", shard_samples=3)
    location = f"pipe:cat {tmp_path}/shards"
    index = read_index(tmp_path / "shards" / "train")
    total = sum(shard.bytes for shard in index.shards)
    assert (len(index.shards), index.samples) == (56, 168)
    steps = 14  # an epoch of 12 images a step

    def epoch(nodes: int, seen: int) -> tuple[list[int], list[int]]:
        """Samples of an epoch by position, and bytes of shards that each node fetched."""
        found: dict[int, int] = {}
        fetched = []
        for node in range(nodes):
            stream = open_stream(
                location,
                PLAIN,
                global_batch=12,
                micro_batch=12 // nodes,
                seed=0,
                rank=node,
                ranks=nodes,
                images_seen=seen,
                cache=tmp_path / f"node-{nodes}-{node}",
            )
            for batch in islice(stream, steps):
                found |= dict(zip(batch.positions.tolist(), batch.samples.tolist(), strict=True))
            names = {shard.sha256 for shard in index.shards}
            cached = [path for path in (tmp_path / f"node-{nodes}-{node}").iterdir() if path.stem in names]
            fetched.append(sum(path.stat().st_size for path in cached))
        return [found[position] for position in sorted(found)], fetched

    samples, fetched = epoch(4, 0)
    assert sorted(samples) == list(range(168))
    assert max(fetched) <= 1.1 / 4 * total
    later, fetched = epoch(2, 168)
    assert sorted(later) == list(range(168))
    assert max(fetched) <= 1.1 / 2 * total
    alone = open_stream(tmp_path / "shards", PLAIN, global_batch=12, micro_batch=12, seed=0)
    sequence = np.concatenate([batch.samples.numpy() for batch in islice(alone, 2 * steps)])
    assert [*samples, *later] == sequence.tolist()
