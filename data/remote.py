"""Shards behind a URL, read through a bounded cache of whole files on local disk.

A location is a folder, a URL that webdataset's gopen knows (http, https, gs, ...), s3://BUCKET/PATH (through the aws
command), or pipe:COMMAND, which gets the name of the wanted file in place of {}, or at its end after a slash.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from data.download import CACHE
from scaling.errors import UserError
from scaling.files import UNWRITABLE

SHARD_CACHE: Final = CACHE / "shards"
CACHE_BYTES: Final = 64 << 30
ATTEMPTS: Final = 5
BACK_OFF: Final = 1.0  # seconds before the second attempt, twice as long before each further one
CHUNK: Final = 1 << 20
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FETCHERS: Final = 2  # threads that read ahead, in each process

Location = str | Path


class IncompleteError(Exception):
    """What arrived is not what the index says."""


def is_remote(location: Location) -> bool:
    """Whether a location is a URL or command, not a folder."""
    return isinstance(location, str) and (location.startswith("pipe:") or "://" in location)


def join(location: Location, name: str) -> Location:
    """The location of `name` inside `location`."""
    if not isinstance(location, str) or not is_remote(location):
        return Path(location) / name
    if "{}" in location:
        return location.replace("{}", f"{name}/{{}}")
    return f"{location.rstrip('/')}/{name}"


def open_url(location: Location, name: str) -> Any:
    """A stream of the file `name` at a remote location; errors of its command come when it is closed."""
    from webdataset.gopen import gopen

    url = str(location)
    if url.startswith("s3://"):
        url = f"pipe:aws s3 cp '{url.rstrip('/')}/{{}}' -"
    return gopen(url.replace("{}", name) if "{}" in url else f"{url.rstrip('/')}/{name}", "rb")


def download(
    location: Location,
    name: str,
    file: IO[bytes],
    *,
    size: int | None = None,
    sha256: str | None = None,
    attempts: int = ATTEMPTS,
) -> None:
    """Fills `file` with the remote file `name`, checked; tries again with growing pauses, then UserError.

    OSError where there is no room for it here.
    """
    for attempt in range(attempts):
        if attempt:
            time.sleep(BACK_OFF * 2 ** (attempt - 1))
        file.seek(0)
        file.truncate(size or 0)
        try:
            _copy(location, name, file, size, sha256)
            return
        except (OSError, ValueError, IncompleteError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise  # of the disk here, which another attempt does not empty
            last = error
    said = re.sub(r"^\(.*\): (exit -?\d+).*", r"\1", str(last), flags=re.DOTALL)  # gopen tells its whole command
    why = f"{name} could not be fetched in {attempts} attempts: {said}"
    raise UserError("shards", str(location), "a location that can be reached and holds whole shards", why=why)


def _copy(location: Location, name: str, file: IO[bytes], size: int | None, sha256: str | None) -> None:
    digest, count = hashlib.sha256(), 0
    stream = open_url(location, name)
    try:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            count += len(chunk)
            file.write(chunk)
    finally:
        stream.close()
    if size is not None and count != size:
        raise IncompleteError(f"{count} bytes arrived, the index says {size}")
    if sha256 is not None and digest.hexdigest() != sha256:
        raise IncompleteError("its sha256 is not the one in the index")


class ShardCache:
    """Files named by their sha256 in one folder, shared by all processes of a node, within `limit` bytes.

    A file under way is NAME.part, as long as it will be and locked by the process that fetches it, so that its room is
    counted, a second process waits for it, and what a killed process leaves is found by its missing lock; while it
    waits for room its length is 0. Who looks a file up shares the lock on the folder, who evicts has it alone. An
    evicted file that is still open keeps its space until it is closed (data.store.OPEN_CACHED).
    """

    def __init__(self, folder: Path = SHARD_CACHE, limit: int = CACHE_BYTES) -> None:
        self.folder = folder
        self.limit = limit
        self.fetched = 0  # bytes, by this object

    def path(self, sha256: str) -> Path:
        """Where the file with this checksum is, once it is whole."""
        return self.folder / f"{sha256}.file"

    def get(self, location: Location, name: str, size: int, sha256: str) -> Path:
        """The local copy of a remote file, fetched where it is not there; the least recently used make room for it."""
        with self.held(location, name, size, sha256) as path:
            return path

    @contextlib.contextmanager
    def held(self, location: Location, name: str, size: int, sha256: str) -> Iterator[Path]:
        """`get`, with a file that stays at its path in the block: long enough to open it, not to read it.

        UserError where the folder cannot be written, or its disk is full before the limit is reached.
        """
        if size > self.limit:
            raise UserError("cache_bytes", self.limit, f"at least the size of a shard ({size})")
        path = self.path(sha256)
        try:
            while True:
                with self._locked(fcntl.LOCK_SH):
                    if path.is_file():
                        os.utime(path)
                        yield path
                        return
                self._fetch(location, name, size, sha256)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            valid = f"a folder that can be written, with room for {self.limit} bytes"
            raise UserError("cache", str(self.folder), valid, why=str(error)) from None

    def _fetch(self, location: Location, name: str, size: int, sha256: str) -> None:
        """Fetches a file that is not there; or waits until another process has, or has failed to."""
        path = self.path(sha256)
        temporary = path.with_suffix(".part")
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if path.is_file() or not _is_at(part, temporary):
                return
            part.truncate(0)
            while (other := self._reserve(size, part, temporary)) is not None:
                _wait_for(other)
            download(location, name, part, size=size, sha256=sha256)
            part.flush()
            os.fsync(part.fileno())
            temporary.rename(path)
            self.fetched += size

    def _reserve(self, size: int, part: IO[bytes], own: Path) -> Path | None:
        """Reserves `size` bytes for `part` at `own`, removing old files; or names a fetch to wait for.

        It is one that has its room: who waits for room is waited for by nobody, so no two wait for each other.
        """
        with self._locked(fcntl.LOCK_EX):
            others = [other for other in self.folder.glob("*.part") if other != own and not _abandoned(other)]
            under_way = {other: _size(other) for other in others}
            if sum(under_way.values()) + size > self.limit:
                return max(under_way, key=under_way.__getitem__)
            kept = sorted(
                (entry.stat().st_mtime_ns, entry.stat().st_size, entry) for entry in self.folder.glob("*.file")
            )
            held = sum(under_way.values()) + sum(length for _, length, _ in kept)
            for _, length, entry in kept:
                if held + size <= self.limit:
                    break
                entry.unlink(missing_ok=True)
                held -= length
            part.truncate(size)
            return None

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """One lock for the whole folder, shared or exclusive: files go under the latter alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("ab") as lock:
            fcntl.flock(lock, kind)
            yield


class ReadAhead:
    """Fetches files into a cache in the background; who needs one then finds it, or waits for the fetch under way."""

    def __init__(self, cache: ShardCache, location: Location) -> None:
        self.cache, self.location = cache, location
        self._asked: set[str] = set()
        self._queue: queue.SimpleQueue[tuple[str, int, str]] = queue.SimpleQueue()
        for _ in range(FETCHERS):
            # Daemons: a download under way does not keep a process that is done.
            threading.Thread(target=self._work, name="read-ahead", daemon=True).start()

    def ask(self, name: str, size: int, sha256: str) -> None:
        """Fetches this file some time soon, unless it is there or asked for already."""
        if name not in self._asked and not self.cache.path(sha256).is_file():
            self._asked.add(name)
            self._queue.put((name, size, sha256))

    def _work(self) -> None:
        while True:
            name, size, sha256 = self._queue.get()
            with contextlib.suppress(UserError):  # the reader meets the same fault, and reports it
                self.cache.get(self.location, name, size, sha256)
            self._asked.discard(name)


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _abandoned(path: Path) -> bool:
    """Whether nobody is fetching into this file; it is removed then, while its lock is held."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True  # it has become a whole file meanwhile
    return True


def _wait_for(part: Path) -> None:
    """Returns when the fetch into this file has ended: done, failed, or dead, as a lock goes with its process."""
    with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
