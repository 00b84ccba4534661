"""Corrupt samples in a run: a few are replaced and named, too many stop it with their list, counted over all ranks."""

import shutil
import subprocess
from pathlib import Path

import pytest

from data.store import Store
from tests.scaling.runs import carry_out, command, environment, small_config, write_run


def damaged(shards: Path, folder: Path, samples: list[int]) -> Path:
    """A copy of the shards in which a bit of each of these training samples is flipped."""
    copy = Path(shutil.copytree(shards, folder / "shards"))
    store = Store(copy / "train")
    for sample in samples:
        path = copy / "train" / store.index.shards[store.shard_of(sample)].name
        data = bytearray(path.read_bytes())
        data[int(store.samples[sample]["offset"]) + 100] ^= 1
        path.write_bytes(data)
    return copy


@pytest.mark.slow
def test_one_is_replaced(shards: Path, tmp_path: Path) -> None:
    folder = write_run(small_config(damaged(shards, tmp_path, [50]), images=192), tmp_path)
    assert carry_out(folder)[-1]["images_seen"] == 192


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_two_are_too_many_at_any_world_size(ranks: int, shards: Path, tmp_path: Path) -> None:
    """With one epoch each sample is met by one rank alone; 2 of 192 are more than the 1 allowed."""
    config = small_config(damaged(shards, tmp_path, [3, 150]), images=192, engine="single" if ranks == 1 else "ddp")
    folder = write_run(config, tmp_path)
    ended = subprocess.run(command(folder, ranks=ranks), env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == (2 if ranks == 1 else 1)  # torchrun makes a 1 of it
    assert "2 samples cannot be read" in ended.stderr
    assert ended.stderr.count("crc32") >= 2
