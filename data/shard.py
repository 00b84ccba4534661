"""Writing one shard: a plain WebDataset tar whose bytes depend on its images alone."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.images import Pixels, UnreadableImageError, decode, encode_png
from data.index import SAMPLE, Shard
from data.sources import Split
from scaling.files import atomic_write, write_json

STATISTICS_SIDE = 64  # larger images give every k-th pixel to the statistics, about this many a side
JPEG_QUALITY = 95


@dataclass
class Record:
    """What is known of a finished shard: its entry in the index, pixel statistics, and the images left out."""

    shard: Shard
    pixels: int = 0
    total: list[int] = field(default_factory=lambda: [0, 0, 0])  # sums over RGB, exact, so that order does not matter
    squares: list[int] = field(default_factory=lambda: [0, 0, 0])
    width: list[int] = field(default_factory=lambda: [1 << 30, 0])
    height: list[int] = field(default_factory=lambda: [1 << 30, 0])
    formats: dict[str, int] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)

    def add(self, pixels: Pixels, extension: str) -> None:
        """Counts one image of (height, width, 3) pixels."""
        height, width = pixels.shape[:2]
        step = max(1, min(height, width) // STATISTICS_SIDE)
        values = pixels[::step, ::step].reshape(-1, 3).astype(np.int64)
        self.pixels += len(values)
        self.total = [a + int(b) for a, b in zip(self.total, values.sum(0), strict=True)]
        self.squares = [a + int(b) for a, b in zip(self.squares, (values * values).sum(0), strict=True)]
        self.width = [min(self.width[0], width), max(self.width[1], width)]
        self.height = [min(self.height[0], height), max(self.height[1], height)]
        self.formats[extension] = self.formats.get(extension, 0) + 1


class _Tar:
    """A tar file being written: counts and hashes its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Adds a member, with nothing in its header but name, size and mode; returns the offset of its data."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o444
        header = info.tobuf(tarfile.PAX_FORMAT)
        offset = self.bytes + len(header)
        self._write(header + data + bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def close(self) -> None:
        """Adds the end mark: two zero blocks, and zeros to a whole record."""
        end = self.bytes + 2 * tarfile.BLOCKSIZE
        self._write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self.sha256.update(data)
        self.bytes += len(data)
        self.file.write(data)


def shard_name(number: int) -> str:
    """The file name of shard `number`."""
    return f"shard-{number:06d}.tar"


def write_shard(split: Split, members: Sequence[int], folder: Path, number: int, resize: int, parts: Path) -> Record:
    """Writes images `members` of the split as shard `number` in `folder`, then its record and samples in `parts`.

    The record is written last: a shard without one is written again. Images that cannot be decoded are left out
    and listed. With `resize`, larger images are scaled so that their short side has that many pixels.
    """
    path = folder / shard_name(number)
    record = Record(Shard(path.name, 0, 0, ""))
    samples = np.zeros(len(members), SAMPLE)
    kept = 0
    with atomic_write(path) as file:
        tar = _Tar(file)
        for image in members:
            key, label = split.keys[image], int(split.labels[image])
            try:
                extension, data = _image(split, image, resize, record)
            except (UnreadableImageError, OSError) as error:
                record.left_out.append({"key": key, "reason": str(error)})
                continue
            samples[kept] = (tar.add(f"{key}.{extension}", data), len(data), label, zlib.crc32(data))
            tar.add(f"{key}.cls", str(label).encode())
            kept += 1
        tar.close()
    record.shard = Shard(path.name, kept, tar.bytes, tar.sha256.hexdigest())
    with atomic_write(parts / f"{path.stem}.npy") as file:
        np.save(file, samples[:kept])
    write_json(parts / f"{path.stem}.json", asdict(record))
    return record


def read_record(parts: Path, number: int) -> Record | None:
    """The record of a shard that was finished before, or None: also where the shard is gone or cut since."""
    path = (parts / shard_name(number)).with_suffix(".json")
    if not path.is_file():
        return None
    value = json.loads(path.read_text(encoding="utf-8"))
    record = Record(**{**value, "shard": Shard(**value["shard"])})
    shard = parts.parent / record.shard.name
    return record if shard.is_file() and shard.stat().st_size == record.shard.bytes else None


def read_part(parts: Path, number: int) -> NDArray[np.void]:
    """The SAMPLE records of a finished shard."""
    part: NDArray[np.void] = np.load((parts / shard_name(number)).with_suffix(".npy"))
    return part


def _image(split: Split, image: int, resize: int, record: Record) -> tuple[str, bytes]:
    extension, data = split.reader.read(image)
    pixels = decode(data)
    height, width = pixels.shape[:2]
    if resize and min(height, width) > resize:
        scale = resize / min(height, width)
        size = (max(resize, round(width * scale)), max(resize, round(height * scale)))
        smaller = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(smaller)
        if extension in ("jpg", "jpeg"):
            buffer = io.BytesIO()
            smaller.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
            data = buffer.getvalue()
        else:
            extension, data = "png", encode_png(pixels)
    record.add(pixels, extension)
    return extension, data
