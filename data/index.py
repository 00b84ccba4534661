"""The index of a folder of shards: index.json (facts, counts, checksums) and samples.npy (one record a sample).

OUTPUT/<split>/shard-000000.tar ...   plain WebDataset: KEY.jpg (or png, webp) and KEY.cls, a decimal class
OUTPUT/<split>/samples.npy            SAMPLE records in shard order, memory-mapped by readers
OUTPUT/<split>/index.json             written last: a folder without it is not complete
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data.remote import ATTEMPTS, Location, download, is_remote, join
from scaling.errors import UserError

INDEX: Final = "index.json"
SAMPLES: Final = "samples.npy"
FORMAT: Final = 1
TRAIN: Final = "train"
EVALUATION_SPLITS: Final = ("test", "val")

SAMPLE: Final = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("crc32", "<u4")])
"""Of one sample: first byte of the image in its shard, bytes, class, and crc32 of the image's bytes."""

PACK_FIRST: Final = "a folder made by `armscale data pack SOURCE OUTPUT`, or one of its splits"


@dataclass(frozen=True)
class Shard:
    """One tar file: samples in it, bytes and the sha256 of the file."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ImageFacts:
    """Smallest and largest width and height in pixels, and how many images are stored in each format."""

    width: tuple[int, int]
    height: tuple[int, int]
    formats: dict[str, int]


@dataclass(frozen=True)
class Index:
    """What index.json says. `mean` and `std` (RGB, in units of 0 to 1) are the training split's in every split.

    `fingerprint` is the data set's identity in a run's hash: it changes with any image, label, class or their order.
    """

    split: str
    source: str
    classes: tuple[str, ...]
    samples: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    samples_bytes: int  # of samples.npy
    samples_sha256: str
    images: ImageFacts
    shards: tuple[Shard, ...]
    left_out: tuple[dict[str, str], ...]  # key and reason of every image that could not be read
    request: dict[str, Any]  # what pack was asked for, and a digest of the listing of the source

    @property
    def shard_samples(self) -> NDArray[np.int64]:
        """(shards,) samples of each shard."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @property
    def image_size(self) -> int | None:
        """The side of every image when all are squares of one size, else None."""
        sides = {*self.images.width, *self.images.height}
        return sides.pop() if len(sides) == 1 else None


def fingerprint_of(classes: Sequence[str], shard_samples: Sequence[int], samples: NDArray[np.void]) -> str:
    """16 hex digits over the classes, and over place, size, class and checksum of every image, in order."""
    digest = hashlib.sha256(json.dumps([list(classes), [int(count) for count in shard_samples]]).encode())
    digest.update(samples.tobytes())
    return digest.hexdigest()[:16]


def to_json(index: Index) -> dict[str, Any]:
    """The object of index.json."""
    return {"format": FORMAT, **asdict(index)}


def from_json(value: dict[str, Any]) -> Index:
    """The index in an object of index.json."""
    facts = value["images"]
    return Index(
        split=value["split"],
        source=value["source"],
        classes=tuple(value["classes"]),
        samples=value["samples"],
        mean=tuple(value["mean"]),
        std=tuple(value["std"]),
        fingerprint=value["fingerprint"],
        samples_bytes=value["samples_bytes"],
        samples_sha256=value["samples_sha256"],
        images=ImageFacts(tuple(facts["width"]), tuple(facts["height"]), facts["formats"]),
        shards=tuple(Shard(**shard) for shard in value["shards"]),
        left_out=tuple(value["left_out"]),
        request=value["request"],
    )


def read_index(folder: Location, attempts: int = ATTEMPTS) -> Index:
    """The index of one split folder (see split_folder); UserError where there is none or it cannot be read."""
    try:
        value = json.loads(_index_text(folder, attempts))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("shards", str(folder), PACK_FIRST, why=missing_index(Path(folder))) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError("shards", str(folder), PACK_FIRST, why=f"{INDEX} is not JSON: {error}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise UserError(
            "shards", str(folder), PACK_FIRST, why=f"{INDEX} has format {found}, this version reads {FORMAT}"
        )
    try:
        return from_json(value)
    except (KeyError, TypeError) as error:
        raise UserError("shards", str(folder), PACK_FIRST, why=f"{INDEX} lacks or misstates {error}") from None


def _index_text(folder: Location, attempts: int) -> bytes:
    if not is_remote(folder):
        return (Path(folder) / INDEX).read_bytes()
    file = io.BytesIO()
    download(folder, INDEX, file, attempts=attempts)
    return file.getvalue()


def missing_index(folder: Path) -> str:
    """Why a folder has no index, as far as one can see."""
    if not folder.exists():
        return "there is no such folder"
    splits = [child.name for child in sorted(folder.iterdir()) if (child / INDEX).is_file()] if folder.is_dir() else []
    if splits:
        return f"it holds the splits {', '.join(splits)}; name one"
    if folder.is_dir() and any(folder.glob("**/*.tar")):
        return f"it holds tar files but no {INDEX}: packing has not finished (run it again) or something else made them"
    return f"it has no {INDEX}"


def split_folder(shards: Location, split: str) -> Location:
    """The folder of `split` (train, or test and val for the same evaluation split) in the output of pack.

    `shards` is that output or one split's folder, or a URL of either (see data.remote), where a folder is taken for
    a split when its name is one. UserError when it holds no such split.
    """
    names = EVALUATION_SPLITS if split in EVALUATION_SPLITS else (split,)
    if is_remote(shards):
        return _remote_split(shards, names)
    folder = Path(shards)
    for name in sorted(names, key=lambda name: name != split):
        if (folder / name / INDEX).is_file():
            return folder / name
    if (folder / INDEX).is_file():
        held = read_index(folder).split
        if held in names:
            return folder
        raise UserError("shards", str(shards), f"shards of the split {split}", why=f"this folder is the split {held}")
    others = [child.name for child in sorted(folder.glob("*")) if (child / INDEX).is_file()]
    why = f"it holds only the split {', '.join(others)}" if others else missing_index(folder)
    raise UserError("shards", str(shards), f"shards with the split {split} ({PACK_FIRST})", why=why)


def _remote_split(shards: Location, names: Sequence[str]) -> Location:
    """The first of these splits whose index can be fetched from below `shards`, else `shards` where it is one."""
    places = (*(join(shards, name) for name in names), shards)
    reasons: dict[Location, str] = {}
    # One quick look at each before any is tried again with pauses.
    for attempts in (1, ATTEMPTS):
        for place in places:
            try:
                index = read_index(place, attempts)
            except UserError as error:
                reasons[place] = error.why
                continue
            if index.split in names:
                return place
            reasons[place] = f"is the split {index.split}"
    why = "; ".join(f"{place}: {reason}" for place, reason in reasons.items())
    raise UserError("shards", str(shards), f"shards with the split {names[0]}", why=why)


def read_samples(path: Path, index: Index) -> NDArray[np.void]:
    """(samples,) SAMPLE records, memory-mapped: pages are shared by all processes of a node and read when touched."""
    try:
        samples: NDArray[np.void] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # noqa: BLE001 - numpy's parser may raise anything at a damaged header
        raise UserError("shards", str(path), PACK_FIRST, why=f"{SAMPLES} cannot be read: {error}") from None
    if samples.dtype != SAMPLE or samples.shape != (index.samples,):
        why = f"{SAMPLES} has {samples.size} records, {INDEX} says {index.samples}: they are not from one packing"
        raise UserError("shards", str(path), PACK_FIRST, why=why)
    return samples


def has_split(shards: str | Path, split: str) -> bool:
    """Whether `split_folder` would find one."""
    try:
        split_folder(shards, split)
    except UserError:
        return False
    return True
