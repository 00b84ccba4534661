"""Reading images out of shards by their offsets, without looking at the tar."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.images import UnreadableImageError
from data.index import SAMPLES, Index, read_index, read_samples
from data.remote import CACHE_BYTES, SHARD_CACHE, Location, ReadAhead, ShardCache, is_remote
from scaling.errors import UserError

OPEN_SHARDS = 256  # descriptors a process keeps, well below the usual limit of 1024
OPEN_CACHED = 4  # of cached files, whose space is free again only when the last descriptor is closed


class Store:
    """The images of one split, in a folder or behind a URL. Opened anew in every worker process that it is sent to."""

    def __init__(self, location: Location, cache: Path = SHARD_CACHE, cache_bytes: int = CACHE_BYTES) -> None:
        self.location = location
        self.cache = ShardCache(cache, cache_bytes) if is_remote(location) else None
        self.index: Index = read_index(location)
        self._open()

    def _open(self) -> None:
        with self._local(SAMPLES, self.index.samples_bytes, self.index.samples_sha256) as path:
            self.samples = read_samples(path, self.index)
        counts = self.index.shard_samples
        self.first = np.cumsum(counts) - counts
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._ahead: ReadAhead | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"location": self.location, "cache": self.cache, "index": self.index}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    def shard_of(self, sample: int) -> int:
        """The shard that holds a sample."""
        return int(np.searchsorted(self.first, sample, side="right")) - 1

    def expect(self, samples: NDArray[np.int64]) -> None:
        """Says that these samples are wanted soon: shards that are behind a URL are fetched meanwhile."""
        if self.cache is None:
            return
        if self._ahead is None:
            self._ahead = ReadAhead(self.cache, self.location)
        for number in np.unique(np.searchsorted(self.first, samples, side="right") - 1).tolist():
            shard = self.index.shards[number]
            self._ahead.ask(shard.name, shard.bytes, shard.sha256)

    def read(self, sample: int) -> tuple[bytes, int]:
        """(bytes of the image file, label) of a sample; fewer bytes than the index says where the shard is cut off."""
        offset, size, label, _ = self.samples[sample].item()
        return os.pread(self._descriptor(self.shard_of(sample)), size, offset), label

    def read_checked(self, sample: int) -> tuple[bytes, int]:
        """`read`, with UnreadableImageError where the bytes are not those that were packed.

        Most damage to a JPEG decodes, to another picture. The checksum is a hundredth of the work of decoding.
        """
        data, label = self.read(sample)
        if zlib.crc32(data) != self.samples[sample]["crc32"]:
            raise UnreadableImageError("its bytes were changed or cut off since packing (crc32)")
        return data, label

    def name(self, sample: int) -> str:
        """ "SHARD, MEMBER" of a sample; the member's name is read from the tar."""
        shard = self.shard_of(sample)
        start = int(self.samples[sample]["offset"]) - tarfile.BLOCKSIZE
        header = os.pread(self._descriptor(shard), tarfile.BLOCKSIZE, start)
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "replace").name
        except tarfile.HeaderError:
            member = f"sample {sample - int(self.first[shard])}"
        return f"{self.index.shards[shard].name}, {member}"

    def _local(self, name: str, size: int, sha256: str) -> AbstractContextManager[Path]:
        """Where to open a file of the split, in the block."""
        if self.cache is not None:
            return self.cache.held(self.location, name, size, sha256)
        return nullcontext(Path(self.location) / name)

    def _descriptor(self, number: int) -> int:
        descriptor = self._descriptors.get(number)
        if descriptor is not None:
            self._descriptors.move_to_end(number)
            return descriptor
        shard = self.index.shards[number]
        with self._local(shard.name, shard.bytes, shard.sha256) as path:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError as error:
                valid, why = "all shards that the index lists, readable", error.strerror or ""
                raise UserError("shards", str(path), valid, why=why) from None
        self._descriptors[number] = descriptor
        if len(self._descriptors) > (OPEN_SHARDS if self.cache is None else OPEN_CACHED):
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor
