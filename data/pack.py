"""Packing a source into shards: the same bytes for the same source and seed, whatever the number of workers or kills.

Which image goes into which shard is fixed before any is read: a permutation of the split by the seed, cut into
equal pieces. A finished shard leaves its record in OUTPUT/<split>/.parts, so that a killed packing goes on
where it was; index.json comes last and the parts go.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data import draws
from data.datasets import open_source
from data.index import (
    INDEX,
    SAMPLE,
    SAMPLES,
    TRAIN,
    ImageFacts,
    Index,
    fingerprint_of,
    read_index,
    to_json,
)
from data.processes import each
from data.shard import Record, read_part, read_record, write_shard
from data.sources import Source, Split
from scaling.errors import UserError
from scaling.files import atomic_write, write_json

PARTS: Final = ".parts"
PLAN: Final = "plan.json"
Progress = Callable[[str, int, int], None]
"""Called with (split, images done, images in all)."""


@dataclass(frozen=True)
class Packing:
    """What pack did: the index of every split, and whether it was all there already."""

    indexes: dict[str, Index]
    unchanged: bool


@dataclass(frozen=True)
class Request:
    """Everything that decides the bytes of a split; `listing` is a digest of the source's keys, labels and sizes."""

    source: str
    classes: int
    samples: int
    listing: str
    seed: int
    shard_samples: int
    resize: int


def pack(
    source: str,
    output: str | Path,
    *,
    seed: int = 0,
    shard_samples: int = 1000,
    resize: int = 0,
    workers: int = 1,
    max_bad: float = 0.001,
    progress: Progress = lambda split, done, total: None,
) -> Packing:
    """Packs `source` (see data.datasets) into OUTPUT/<split>/, one folder a split.

    `resize` scales larger images to that short side in pixels; 0 keeps the bytes of the files. Images that cannot be
    decoded are left out and listed in the index; more than the fraction `max_bad` of a split, but at least one,
    is a UserError, and so is an output that holds something else.
    """
    for name, value, least in (("shard-samples", shard_samples, 1), ("resize", resize, 0), ("workers", workers, 1)):
        if value < least:
            raise UserError(name, value, f"a whole number of at least {least}")
    if not 0 <= max_bad <= 1:  # nor NaN
        raise UserError("max-bad", max_bad, "a fraction from 0 to 1")
    opened = open_source(source)
    output = Path(output)
    requests = {split.name: _request(opened, split, seed, shard_samples, resize) for split in opened.splits}
    complete = {name: _is_complete(output / name, request) for name, request in requests.items()}
    indexes: dict[str, Index] = {}
    for split in opened.splits:
        folder = output / split.name
        if complete[split.name]:
            indexes[split.name] = read_index(folder)
        else:
            request, train = requests[split.name], indexes.get(TRAIN)
            with _alone(folder):
                indexes[split.name] = _pack_split(opened, split, request, folder, train, workers, max_bad, progress)
    return Packing(indexes, all(complete.values()))


def _request(source: Source, split: Split, seed: int, shard_samples: int, resize: int) -> Request:
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    for number, key in enumerate(split.keys):
        digest.update(f"{key} {split.labels[number]} {split.reader.stamp(number)}\n".encode())
    listing = digest.hexdigest()[:16]
    return Request(source.name, len(source.classes), len(split.keys), listing, seed, shard_samples, resize)


def _is_complete(folder: Path, request: Request) -> bool:
    """Whether the folder holds just this; False when it is to be filled; UserError when it holds something else."""
    if (folder / INDEX).is_file():
        _same(folder, read_index(folder).request, request)
        shutil.rmtree(folder / PARTS, ignore_errors=True)  # a kill between the index and this line leaves them
        return True
    plan = folder / PARTS / PLAN
    if plan.is_file():
        _same(folder, json.loads(plan.read_text(encoding="utf-8")), request)
    elif folder.is_dir() and any(child.name != PARTS for child in folder.iterdir()):
        raise UserError("OUTPUT", str(folder), "an empty or new folder", why="it holds files that pack did not make")
    return False


def _same(folder: Path, found: dict[str, Any], request: Request) -> None:
    wanted = vars(request)
    differing = [
        f"{name} {found.get(name)!r} there, {wanted[name]!r} asked"
        for name in wanted
        if found.get(name) != wanted[name]
    ]
    if differing:
        raise UserError("OUTPUT", str(folder), "another folder, or remove this one", why="; ".join(differing))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps others from packing into the folder, and clears what a killed packing was just writing."""
    try:
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        lock = (folder / PARTS / "lock").open("w")
    except OSError as error:
        raise UserError("OUTPUT", str(folder), "a folder that can be written", why=error.strerror or "") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "OUTPUT", str(folder), "a folder that nobody fills", why="another pack is at work"
            ) from None
        for left in (*folder.glob(".*.tmp"), *(folder / PARTS).glob(".*.tmp")):
            left.unlink()
        yield


def _pack_split(
    source: Source,
    split: Split,
    request: Request,
    folder: Path,
    train: Index | None,
    workers: int,
    max_bad: float,
    progress: Progress,
) -> Index:
    parts = folder / PARTS
    write_json(parts / PLAN, vars(request))
    pieces = _pieces(split, request)
    records = {number: record for number in range(len(pieces)) if (record := read_record(parts, number)) is not None}
    allowed = max(1, int(max_bad * request.samples))
    done = sum(len(pieces[number]) for number in records)
    progress(split.name, done, request.samples)
    todo = [number for number in range(len(pieces)) if number not in records]
    for number, record in each(_write, _Job(split, pieces, folder, request.resize), todo, workers):
        records[number] = record
        done += len(pieces[number])
        _check_left_out(split, records, allowed)
        progress(split.name, done, request.samples)
    _check_left_out(split, records, allowed)
    return _finish(source, split, request, folder, [records[number] for number in range(len(pieces))], train)


def _pieces(split: Split, request: Request) -> list[NDArray[np.int64]]:
    """The images of each shard."""
    order = draws.permutation(draws.key(request.seed, "pack", split.name), request.samples)
    shards = -(-request.samples // request.shard_samples)
    return [np.asarray(piece) for piece in np.array_split(order, shards)]


@dataclass(frozen=True)
class _Job:
    """What all shards of a split have in common."""

    split: Split
    pieces: list[NDArray[np.int64]]
    folder: Path
    resize: int


def _write(job: _Job, number: int) -> Record:
    return write_shard(job.split, job.pieces[number].tolist(), job.folder, number, job.resize, job.folder / PARTS)


def _check_left_out(split: Split, records: dict[int, Record], allowed: int) -> None:
    left_out = [item for record in records.values() for item in record.left_out]
    if len(left_out) > allowed:
        shown = "; ".join(f"{item['key']} ({item['reason']})" for item in left_out[:5])
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        why = f"{len(left_out)} images cannot be read, more than the {allowed} allowed: {shown}{more}"
        raise UserError("source", split.name, "images that can be decoded, or a larger --max-bad", why=why)
    if left_out and len(left_out) == len(split.keys):
        why = f"no image can be read: {left_out[0]['key']} ({left_out[0]['reason']})"
        raise UserError("source", split.name, "images that can be decoded", why=why)


def _finish(
    source: Source, split: Split, request: Request, folder: Path, records: list[Record], train: Index | None
) -> Index:
    """Writes samples.npy and, last, index.json."""
    parts = folder / PARTS
    with atomic_write(folder / SAMPLES) as file:
        header = {"descr": np.lib.format.dtype_to_descr(SAMPLE), "fortran_order": False}
        samples = sum(record.shard.samples for record in records)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (samples,)})
        for number in range(len(records)):
            file.write(read_part(parts, number).tobytes())
    mean, std = _normalization(source, records, train)
    index = Index(
        split=split.name,
        source=source.name,
        classes=source.classes,
        samples=samples,
        mean=mean,
        std=std,
        samples_bytes=(folder / SAMPLES).stat().st_size,
        samples_sha256=hashlib.sha256((folder / SAMPLES).read_bytes()).hexdigest(),
        fingerprint=fingerprint_of(
            source.classes,
            [record.shard.samples for record in records],
            np.load(folder / SAMPLES, mmap_mode="r"),
        ),
        images=_facts(records),
        shards=tuple(record.shard for record in records),
        left_out=tuple(item for record in records for item in record.left_out),
        request=vars(request),
    )
    write_json(folder / INDEX, to_json(index))
    shutil.rmtree(parts)
    return index


RGB = tuple[float, float, float]


def _normalization(source: Source, records: list[Record], train: Index | None) -> tuple[RGB, RGB]:
    """Mean and standard deviation: the field's constants, else the training split's, else measured (this is it)."""
    if source.normalization is not None:
        return source.normalization
    if train is not None:
        return train.mean, train.std
    pixels = sum(record.pixels for record in records)
    mean, std = [], []
    for channel in range(3):
        average = sum(record.total[channel] for record in records) / pixels
        square = sum(record.squares[channel] for record in records) / pixels
        mean.append(round(average / 255, 6))
        # A data set of one flat colour still has to be divided by something.
        std.append(max(round(max(square - average * average, 0) ** 0.5 / 255, 6), 1 / 255))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _facts(records: list[Record]) -> ImageFacts:
    formats: dict[str, int] = {}
    for record in records:
        for name, count in record.formats.items():
            formats[name] = formats.get(name, 0) + count
    used = [record for record in records if record.shard.samples]
    return ImageFacts(
        (min(record.width[0] for record in used), max(record.width[1] for record in used)),
        (min(record.height[0] for record in used), max(record.height[1] for record in used)),
        dict(sorted(formats.items())),
    )
