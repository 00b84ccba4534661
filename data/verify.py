"""Whether shards are what their index says: every fault with its shard and key."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data.images import UnreadableImageError, decode
from data.index import INDEX, SAMPLES, Index, fingerprint_of, read_index, read_samples
from data.processes import each
from scaling.errors import UserError

LABEL = "cls"


@dataclass(frozen=True)
class _Split:
    folder: Path
    index: Index
    decode: bool


@dataclass(frozen=True)
class _Checked:
    """Of one shard: what is wrong, and a 64-bit hash of every key."""

    faults: list[str]
    keys: NDArray[np.uint64]


class _Hashing:
    """A file being read, and the sha256 of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.sha256.update(data)
        return data


def verify(
    folder: str | Path,
    *,
    decode_images: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """What is wrong with one split's folder, each fault with shard and key; an empty list when nothing is.

    Checks pairs of image and label, unique keys, counts, offsets, sizes, labels, crc32 of images and sha256 of files;
    with `decode_images` also decodes every image. `progress` is called with (shards done, shards in all).
    UserError where there is no index to check against.
    """
    folder = Path(folder)
    index = read_index(folder)
    faults = _check_samples(folder, index)
    if faults:
        return faults
    known = {shard.name for shard in index.shards}
    faults += [f"{path.name}: not in {INDEX}" for path in sorted(folder.glob("*.tar")) if path.name not in known]
    checked: dict[int, _Checked] = {}
    for number, result in each(_check_shard, _Split(folder, index, decode_images), range(len(known)), workers):
        checked[number] = result
        progress(len(checked), len(known))
    for number in range(len(known)):
        faults += checked[number].faults
    return faults + _check_unique(folder, index, [checked[number].keys for number in range(len(known))])


def _check_samples(folder: Path, index: Index) -> list[str]:
    """Whether index.json and samples.npy are from one packing."""
    try:
        samples = read_samples(folder / SAMPLES, index)
    except UserError as error:
        return [f"{SAMPLES}: {error.why}"]
    if sum(shard.samples for shard in index.shards) != index.samples:
        return [f"{INDEX}: the samples of its shards do not add up to {index.samples}"]
    if fingerprint_of(index.classes, index.shard_samples.tolist(), samples) != index.fingerprint:
        return [f"{INDEX}, {SAMPLES}: the fingerprint differs; they are from different packings, or one was changed"]
    return []


def _check_shard(split: _Split, number: int) -> _Checked:
    shard = split.index.shards[number]
    path = split.folder / shard.name
    if not path.is_file():
        return _Checked([f"{shard.name}: missing"], np.zeros(0, np.uint64))
    first = int(split.index.shard_samples[:number].sum())
    expected = read_samples(split.folder / SAMPLES, split.index)[first : first + shard.samples]
    faults: list[str] = []
    if path.stat().st_size != shard.bytes:
        faults.append(f"{shard.name}: has {path.stat().st_size} bytes, {INDEX} says {shard.bytes}")
    walk = _Walk(shard.name, expected, split)
    with path.open("rb") as file:
        hashing = _Hashing(file)
        try:
            with tarfile.open(fileobj=hashing, mode="r|") as tar:  # type: ignore[call-overload]  # only reads
                for member in tar:
                    walk.member(member, tar.extractfile(member))
        except (tarfile.TarError, OSError, EOFError) as error:
            walk.faults.append(f"{shard.name}, after {walk.key or 'its start'}: the tar is broken: {error}")
        while hashing.read(1 << 20):
            pass
    faults += walk.end()
    if not faults and hashing.sha256.hexdigest() != shard.sha256:
        faults.append(f"{shard.name}: its sha256 differs, though every image and label is right (headers or padding)")
    return _Checked(faults, np.array(walk.hashes, np.uint64))


class _Walk:
    """Follows the members of one shard beside its records."""

    def __init__(self, name: str, expected: NDArray[np.void], split: _Split) -> None:
        self.name, self.expected, self.split = name, expected, split
        self.faults: list[str] = []
        self.hashes: list[int] = []
        self.key = ""
        self.extensions: list[str] = []
        self.label: int | None = None
        self.record = 0  # of the current key

    def fault(self, text: str) -> None:
        self.faults.append(f"{self.name}, {self.key}: {text}")

    def member(self, member: tarfile.TarInfo, file: Any) -> None:
        """One member of the tar, in order."""
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = folder + slash + stem
        if key != self.key:
            self._finish_key()
            self._begin_key(key)
        data = file.read() if file is not None else b""
        if extension in self.extensions:
            self.fault(f"two samples under one key (a second member .{extension})")
            return
        self.extensions.append(extension)
        if extension == LABEL:
            self._check_label(data)
        else:
            self._check_image(member.offset_data, data)

    def end(self) -> list[str]:
        """All faults, once the tar has ended."""
        self._finish_key()
        if self.record != len(self.expected):
            after = f"after {self.key}" if self.key else "from its start"
            self.faults.append(f"{self.name}, {after}: {self.record} samples, {INDEX} says {len(self.expected)}")
        return self.faults

    def _begin_key(self, key: str) -> None:
        self.key, self.extensions = key, []
        self.hashes.append(key_hash(key))

    def _finish_key(self) -> None:
        if not self.key:
            return
        images = [extension for extension in self.extensions if extension != LABEL]
        if len(images) != 1 or LABEL not in self.extensions:
            missing = "label" if images else "image"
            self.fault(f"no {missing}: members are {', '.join(self.extensions)}" if len(images) < 2 else "two images")
        self.record += 1

    def _expected(self) -> Any:
        return self.expected[self.record] if self.record < len(self.expected) else None

    def _check_label(self, data: bytes) -> None:
        expected = self._expected()
        if expected is not None and data != str(expected["label"]).encode():
            self.fault(f"label {data[:20]!r}, {SAMPLES} says {expected['label']}")

    def _check_image(self, offset: int, data: bytes) -> None:
        expected = self._expected()
        if expected is None:
            return
        if (offset, len(data)) != (expected["offset"], expected["size"]):
            says = f"{expected['size']} at {expected['offset']}"
            self.fault(f"image of {len(data)} bytes at {offset}, {SAMPLES} says {says}")
        elif zlib.crc32(data) != expected["crc32"]:
            self.fault("the image's crc32 differs: its bytes were changed")
        elif self.split.decode:
            try:
                decode(data)
            except UnreadableImageError as error:
                self.fault(f"the image cannot be decoded: {error}")


def key_hash(key: str) -> int:
    """A 64-bit hash of a key: millions of keys are compared without holding their names."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _check_unique(folder: Path, index: Index, keys: list[NDArray[np.uint64]]) -> list[str]:
    """Keys that stand in two places."""
    hashes, counts = np.unique(np.concatenate(keys), return_counts=True)
    doubled = set(hashes[counts > 1].tolist())
    if not doubled:
        return []
    places: dict[str, list[str]] = {}
    for shard, of_shard in zip(index.shards, keys, strict=True):
        if doubled.isdisjoint(of_shard.tolist()):
            continue
        with tarfile.open(folder / shard.name) as tar:
            for name in tar.getnames():
                key = name[: -len(LABEL) - 1]
                if name.endswith(f".{LABEL}") and key_hash(key) in doubled:
                    places.setdefault(key, []).append(shard.name)
    return [f"{', '.join(dict.fromkeys(held))}, {key}: two samples under one key" for key, held in places.items()]
