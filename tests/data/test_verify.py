"""Every fault that shards can have is found, with its shard and key."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data.index import fingerprint_of, read_index, read_samples, to_json
from data.verify import verify
from scaling.cli.data import app
from scaling.errors import UserError

SHARD = "shard-000002.tar"


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "train", tmp_path / "train"))


def rewrite(path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """Reads all members of a tar, changes the list of them and writes it anew."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    change(members)
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def key_at(folder: Path, shard: str, number: int) -> str:
    with tarfile.open(folder / shard) as tar:
        return tar.getnames()[2 * number].rpartition(".")[0]


def test_sound_shards_have_no_faults(shards: Path) -> None:
    assert verify(shards / "train", decode_images=True) == []
    assert verify(shards / "val", workers=2) == []


def test_flipped_byte_in_an_image(folder: Path) -> None:
    index = read_index(folder)
    record = read_samples(folder / "samples.npy", index)[20 + 4]
    data = bytearray((folder / SHARD).read_bytes())
    data[int(record["offset"]) + int(record["size"]) // 2] ^= 0x10
    (folder / SHARD).write_bytes(data)
    (fault,) = verify(folder)
    assert fault.startswith(f"{SHARD}, {key_at(folder, SHARD, 4)}: ")
    assert "crc32" in fault


def test_flipped_byte_in_padding(folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[-1] ^= 1
    (folder / SHARD).write_bytes(data)
    (fault,) = verify(folder)
    assert SHARD in fault
    assert "sha256" in fault


def test_truncated_tar(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    last = key_at(folder, SHARD, 4)
    record = read_samples(folder / "samples.npy", read_index(folder))[20 + 4]
    (folder / SHARD).write_bytes(data[: int(record["offset"]) + 10])
    faults = verify(folder)
    assert any(SHARD in fault and "bytes" in fault for fault in faults)
    assert any(last in fault for fault in faults)


def test_missing_member(folder: Path) -> None:
    key = key_at(folder, SHARD, 3)

    def drop(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        del members[2 * 3 + 1]

    rewrite(folder / SHARD, drop)
    assert any(f"{SHARD}, {key}: no label" in fault for fault in verify(folder))


def test_missing_sample(folder: Path) -> None:
    rewrite(folder / SHARD, lambda members: members.__delitem__(slice(18, 20)))
    assert any(f"{SHARD}, after" in fault and "9 samples" in fault for fault in verify(folder))


def test_changed_label(folder: Path) -> None:
    key = key_at(folder, SHARD, 0)

    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[1] = (members[1][0], b"7")

    rewrite(folder / SHARD, change)
    assert any(f"{SHARD}, {key}: label b'7'" in fault for fault in verify(folder))


def test_two_samples_under_one_key_in_a_shard(folder: Path) -> None:
    key = key_at(folder, SHARD, 0)

    def rename(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        for number in (2, 3):
            members[number][0].name = f"{key}.{members[number][0].name.rpartition('.')[2]}"

    rewrite(folder / SHARD, rename)
    assert any(f"{SHARD}, {key}: two samples under one key" in fault for fault in verify(folder))


def test_two_samples_under_one_key_across_shards(folder: Path) -> None:
    key = key_at(folder, "shard-000000.tar", 0)

    def rename(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        for number in (0, 1):
            members[number][0].name = f"{key}.{members[number][0].name.rpartition('.')[2]}"

    rewrite(folder / SHARD, rename)
    assert f"shard-000000.tar, {SHARD}, {key}: two samples under one key" in verify(folder)


def test_swapped_index(folder: Path, shards: Path) -> None:
    shutil.copy(shards / "val" / "index.json", folder / "index.json")
    (fault,) = verify(folder)
    assert "index.json" in fault
    shutil.copy(shards / "val" / "samples.npy", folder / "samples.npy")
    faults = verify(folder)
    assert any("shard-000000.tar" in fault for fault in faults)
    assert any("shard-000002.tar: not in index.json" in fault for fault in faults)


def test_samples_that_are_cut_or_overwritten(folder: Path) -> None:
    """Every length, and 300 headers with bytes changed at random; also what reads the shards for training says so."""
    path, index = folder / "samples.npy", read_index(folder)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    damaged = [whole[:size] for size in range(0, len(whole), 16)]
    for changes in generator.integers(1, 6, 300).tolist():
        data = bytearray(whole)
        for place, value in zip(generator.integers(0, 128, changes), generator.integers(0, 256, changes), strict=True):
            data[place] = value
        damaged.append(bytes(data))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            read_samples(path, index)
        except UserError as error:
            refused += 1
            assert "samples.npy" in error.why
    assert refused > 300
    path.write_bytes(whole[:-1])
    (fault,) = verify(folder)
    assert fault.startswith("samples.npy: ")
    assert "cannot be read" in fault


@pytest.mark.parametrize("size", [0, 60, 300])
def test_cut_samples_are_named_on_the_command_line(size: int, folder: Path) -> None:
    path = folder / "samples.npy"
    path.write_bytes(path.read_bytes()[:size])
    found = CliRunner().invoke(app, ["verify", str(folder)])
    assert found.exit_code == 1
    assert "samples.npy cannot be read" in found.output


def test_changed_index(folder: Path) -> None:
    value = json.loads((folder / "index.json").read_text())
    value["classes"].reverse()
    (folder / "index.json").write_text(json.dumps(value))
    (fault,) = verify(folder)
    assert "fingerprint" in fault


def test_missing_shard(folder: Path) -> None:
    (folder / SHARD).unlink()
    assert verify(folder) == [f"{SHARD}: missing"]


def test_an_image_that_was_packed_but_does_not_decode(folder: Path) -> None:
    # The bytes are as recorded, so that decoding alone finds it.
    index = read_index(folder)
    samples = np.load(folder / "samples.npy")
    record = samples[24]
    data = bytearray((folder / SHARD).read_bytes())
    start, end = int(record["offset"]), int(record["offset"]) + int(record["size"])
    data[start:end] = bytes(end - start)
    (folder / SHARD).write_bytes(data)
    samples[24]["crc32"] = zlib.crc32(bytes(end - start))
    np.save(folder / "samples.npy", samples)
    value = to_json(index)
    value["shards"][2]["sha256"] = hashlib.sha256(data).hexdigest()
    value["fingerprint"] = fingerprint_of(index.classes, index.shard_samples.tolist(), samples)
    (folder / "index.json").write_text(json.dumps(value))
    assert verify(folder) == []
    (fault,) = verify(folder, decode_images=True)
    assert fault.startswith(f"{SHARD}, {key_at(folder, SHARD, 4)}: the image cannot be decoded")


def test_commands(shards: Path, folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    sound = runner.invoke(app, ["verify", str(shards)])
    assert sound.exit_code == 0, sound.output
    assert sound.output.count("nothing wrong") == 2
    (folder / SHARD).unlink()
    broken = runner.invoke(app, ["verify", str(folder)])
    assert broken.exit_code == 1
    assert f"{SHARD}: missing" in broken.output
    sheet = tmp_path / "sheet.png"
    told = runner.invoke(app, ["info", str(shards), "--sheet", str(sheet)])
    assert told.exit_code == 0, told.output
    assert "class-1 20" in told.output
    assert sheet.stat().st_size > 1000
