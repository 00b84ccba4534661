"""A killed job goes on at another world size with the very same samples and pixels; nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.config import Augmentation
from data.store import Store
from data.stream import open_stream

HOME = Path(__file__).parents[2]
GLOBAL_BATCH = 12


def read_steps(shards: str, rank: int, ranks: int, seen: int, steps: int, workers: int) -> Iterator[str]:
    """One line a step of a rank: images_seen, and the key and a checksum of the pixels of each of its images."""
    stream = open_stream(
        shards,
        Augmentation(image_size=16, randaugment="rand-m9-mstd0.5-inc1", erasing=0.25),
        global_batch=GLOBAL_BATCH,
        micro_batch=GLOBAL_BATCH // ranks,
        seed=3,
        rank=rank,
        ranks=ranks,
        workers=workers,
        images_seen=seen,
        lanes=4,
    )
    store = Store(f"{shards}/train")
    for _, batch in zip(range(steps), stream, strict=False):
        images = [
            [position, store.name(sample), zlib.crc32(image.contiguous().numpy().tobytes()), flip]
            for position, sample, image, flip in zip(
                batch.positions.tolist(), batch.samples.tolist(), batch.images, batch.flips.tolist(), strict=True
            )
        ]
        yield json.dumps([batch.images_seen, images])


def start(shards: Path, log: Path, *numbers: int) -> subprocess.Popen[bytes]:
    """A rank of its own process; `numbers` are the arguments of read_steps after shards."""
    command = [sys.executable, "-m", "tests.data.test_kill", str(shards), *map(str, numbers)]
    environment = {**os.environ, "PYTHONPATH": str(HOME), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, cwd=log.parent)


def images_of(logs: list[Path], steps: int) -> list[list[object]]:
    """The images of the first `steps` steps of all ranks, by position."""
    lines = [line for log in logs for line in log.read_text().splitlines()[:steps]]
    return sorted(image for line in lines for image in json.loads(line)[1])


def descendants(process: int) -> list[int]:
    """Processes below this one, from /proc."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [found for child in map(int, text.split()) for found in (child, *descendants(child))]


def is_running(process: int) -> bool:
    """Whether a process exists and is more than a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_kill_a_two_rank_job_and_go_on_with_three_and_with_one(shards: Path, tmp_path: Path) -> None:
    total = 12
    expected = sorted(image for line in read_steps(str(shards), 0, 1, 0, total, 0) for image in json.loads(line)[1])
    logs = [tmp_path / f"first-{rank}" for rank in range(2)]
    first = [start(shards, log, rank, 2, 0, 1_000_000, 1) for rank, log in enumerate(logs)]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and min(len(log.read_bytes().splitlines()) for log in logs) < 5:
        assert all(process.poll() is None for process in first)
        time.sleep(0.01)
    family = [child for process in first for child in descendants(process.pid)]
    assert len(family) >= 4  # a fork server and a worker each, at least
    for process in first:
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 30
    while any(is_running(process) for process in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(process) for process in family), "workers outlive their trainer"

    # The last checkpoint was written after four steps, say; then three ranks do four, and one rank does the rest.
    later = [tmp_path / f"second-{rank}" for rank in range(3)]
    second = [start(shards, log, rank, 3, 4 * GLOBAL_BATCH, 4, 0) for rank, log in enumerate(later)]
    assert [process.wait(timeout=120) for process in second] == [0, 0, 0]
    last = [image for line in read_steps(str(shards), 0, 1, 8 * GLOBAL_BATCH, 4, 0) for image in json.loads(line)[1]]
    assert images_of(logs, 4) + images_of(later, 4) + sorted(last) == expected


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    for text in read_steps(folder, *map(int, numbers)):  # type: ignore[arg-type]
        print(text, flush=True)
