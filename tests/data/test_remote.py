"""Shards behind URLs: real commands, a real HTTP server, real files in a bounded cache."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import IO

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
    with pytest.raises(UserError, match=r"nothing/train: index.json could not be fetched in 5 attempts: exit \d+; "):
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


def test_fetches_under_way_stay_within_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = {name: name.encode() * 1000 for name in "abcdefgh"}
    guard, at_once, peak = threading.Lock(), 0, 0

    def slow(location: str, name: str, file: IO[bytes], **_: object) -> None:
        nonlocal at_once, peak
        with guard:
            at_once += 1
            peak = max(peak, at_once)
        time.sleep(0.05)
        file.write(blobs[name])
        with guard:
            at_once -= 1

    monkeypatch.setattr(remote, "download", slow)

    def fetch(name: str) -> bytes:
        with ShardCache(tmp_path, 2500).held("x", name, 1000, hashlib.sha256(blobs[name]).hexdigest()) as path:
            return path.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fetch, blobs)) == list(blobs.values())
    assert peak == 2
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2500


def test_a_fetch_that_fills_the_bytes_and_dies_makes_room(shards: Path, tmp_path: Path) -> None:
    first, second = read_index(shards / "train").shards[:2]
    limit = max(first.bytes, second.bytes)
    code = (
        "from pathlib import Path; from data.remote import ShardCache; "
        f"ShardCache(Path({str(tmp_path)!r}), {limit}).get('pipe:sleep 600 #', 'x', {first.bytes}, {first.sha256!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    try:
        part = tmp_path / f"{first.sha256}.part"
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        wants = (f"pipe:cat {shards}/train", second.name, second.bytes, second.sha256)
        waiting = threading.Thread(target=ShardCache(tmp_path, limit).get, args=wants, daemon=True)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        process.kill()  # its command sleeps on
        waiting.join(60)
        assert (tmp_path / f"{second.sha256}.file").stat().st_size == second.bytes
        assert not part.exists()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_file_found_is_not_evicted_before_it_is_open(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = read_index(shards / "train")
    limit = max(shard.bytes for shard in index.shards)
    location = f"pipe:cat {shards}/train"
    one, other = ((location, shard.name, shard.bytes, shard.sha256) for shard in index.shards[:2])
    found = ShardCache(tmp_path, limit).get(*one)
    evicting = threading.Thread(target=ShardCache(tmp_path, limit).get, args=other)
    mark = os.utime

    def late(path: Path) -> None:
        """The first call meets an eviction by another process."""
        monkeypatch.setattr(os, "utime", mark)
        evicting.start()
        evicting.join(0.5)
        mark(path)

    monkeypatch.setattr(os, "utime", late)
    with ShardCache(tmp_path, limit).held(*one) as path, path.open("rb") as file:
        assert hashlib.sha256(file.read()).hexdigest() == one[3]
    evicting.join()
    assert not found.exists()
    assert ShardCache(tmp_path, limit).path(other[3]).is_file()


def test_readers_that_evict_each_others_shards_go_on(shards: Path, tmp_path: Path) -> None:
    index = read_index(shards / "train")
    limit = max(index.samples_bytes, *(shard.bytes for shard in index.shards))
    here = Store(shards / "train")

    def read(first: int) -> bool:
        store = Store(f"pipe:cat {shards}/train/{{}}", tmp_path, limit)
        order = [(first + 10 * turn) % 60 for turn in range(12)]
        return all(store.read(sample) == here.read(sample) for sample in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, (0, 11, 22, 33)))


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


class Full(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_here_is_not_the_location(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: another attempt empties no disk."""
    monkeypatch.setattr(remote, "BACK_OFF", 600.0)
    with pytest.raises(OSError, match="No space left"):
        remote.download(f"pipe:cat {split_folder(shards, 'train')}/{{}}", "index.json", Full())


@pytest.mark.parametrize("trouble", ["a full disk", "a folder that is not ours"])
def test_a_cache_that_cannot_be_filled_is_named(tmp_path: Path, shards: Path, trouble: str) -> None:
    """A limit on the length of a file stands for the full disk; in /sys nobody makes a folder."""
    folder = split_folder(shards, "train")
    shard = read_index(folder).shards[0]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if trouble == "a full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (shard.bytes // 2, before[1]))
    cache = tmp_path if trouble == "a full disk" else Path("/sys/armscale")
    try:
        with pytest.raises(UserError, match=r"^cache: "):
            ShardCache(cache).get(f"pipe:cat {folder}/{{}}", shard.name, shard.bytes, shard.sha256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_shard_that_cannot_be_opened_is_named(shards: Path, tmp_path: Path) -> None:
    """Whatever the reason; a run told of its own folder instead."""
    folder = tmp_path / "train"
    shutil.copytree(Path(split_folder(shards, "train")), folder)
    shard = folder / read_index(folder).shards[0].name
    shard.unlink()
    shard.symlink_to(shard)
    with pytest.raises(UserError, match=rf"{shard.name}.*Too many levels"):
        Store(folder).read(0)
