from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data.index import read_index, read_samples, split_folder
from data.pack import PARTS, pack
from data.verify import verify
from scaling.errors import UserError
from tests.data.conftest import write_images


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_shards_open_in_plain_webdataset(images: Path, shards: Path) -> None:
    index = read_index(shards / "train")
    urls = [str(shards / "train" / shard.name) for shard in index.shards]
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False):
        data = sample.get("jpg") or sample.get("png")
        found[sample["__key__"]] = (int(sample["cls"]), data)
    assert len(found) == index.samples == 60
    for key, (label, data) in found.items():
        class_name, stem = key.split("/")
        assert index.classes[label] == class_name
        original = next((images / "train" / class_name).glob(f"{stem}.*"))
        assert original.read_bytes() == data  # raw bytes are kept


def test_the_index_states_what_is_there(images: Path, shards: Path) -> None:
    train, val = read_index(shards / "train"), read_index(shards / "val")
    assert train.classes == ("class-0", "class-1", "class-2")
    assert (train.images.width, train.images.height) == ((48, 48), (40, 40))
    assert train.images.formats == {"jpg": 45, "png": 15}
    assert train.image_size is None
    pixels = np.concatenate(
        [np.asarray(Image.open(p).convert("RGB")).reshape(-1, 3) for p in sorted((images / "train").rglob("*.*"))]
    )
    np.testing.assert_allclose(train.mean, pixels.mean(0) / 255, atol=2e-3)  # JPEG decoders differ by a level
    np.testing.assert_allclose(train.std, pixels.std(0) / 255, atol=2e-3)
    assert (val.mean, val.std) == (train.mean, train.std)
    assert val.fingerprint != train.fingerprint


def test_samples_are_shuffled_across_classes(shards: Path) -> None:
    labels = read_samples(shards / "train" / "samples.npy", read_index(shards / "train"))["label"]
    assert np.count_nonzero(np.diff(labels)) > 20  # 2 when sorted
    assert np.bincount(labels).tolist() == [20, 20, 20]


def test_same_bytes_for_any_number_of_workers(images: Path, shards: Path, tmp_path: Path) -> None:
    pack(f"imagefolder:{images}", tmp_path / "again", shard_samples=10, workers=3)
    assert digests(tmp_path / "again") == digests(shards)


def test_another_seed_is_another_order_and_fingerprint(images: Path, shards: Path, tmp_path: Path) -> None:
    packing = pack(f"imagefolder:{images}", tmp_path / "other", shard_samples=10, seed=1)
    assert packing.indexes["train"].fingerprint != read_index(shards / "train").fingerprint
    assert packing.indexes["train"].mean == read_index(shards / "train").mean


def test_again_does_nothing_and_another_request_is_refused(images: Path, shards: Path, tmp_path: Path) -> None:
    before = digests(shards)
    assert pack(f"imagefolder:{images}", shards, shard_samples=10).unchanged
    with pytest.raises(UserError, match="seed 0 there, 3 asked"):
        pack(f"imagefolder:{images}", shards, shard_samples=10, seed=3)
    other = write_images(tmp_path / "other", 3, 20, seed=5)
    with pytest.raises(UserError, match=r"listing '\w+' there, '\w+' asked"):
        pack(f"imagefolder:{other}", shards, shard_samples=10)
    assert digests(shards) == before


def test_an_output_with_other_files_is_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="files that pack did not make"):
        pack(f"imagefolder:{images}", tmp_path)
    assert (tmp_path / "train" / "thesis.tex").read_text() == "precious"


def test_resize_scales_the_short_side_of_larger_images_only(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1, 4, size=(60, 90))
    write_images(tmp_path / "in" / "class-0" / "small", 1, 4, size=(20, 30))
    index = pack(f"imagefolder:{tmp_path / 'in'}", tmp_path / "out", resize=30).indexes["train"]
    assert (index.images.height, index.images.width) == ((20, 30), (30, 45))
    assert index.image_size is None


def test_unreadable_images_are_listed_and_left_out(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", 2, 6)
    victim = folder / "class-1" / "002.jpg"
    victim.write_bytes(victim.read_bytes()[:100])
    index = pack(f"imagefolder:{folder}", tmp_path / "out").indexes["train"]
    assert index.samples == 11
    assert [item["key"] for item in index.left_out] == ["class-1/002"]
    assert index.left_out[0]["reason"]


def test_too_many_unreadable_images_leave_no_index(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", 1, 6)
    for name in ("000.jpg", "001.jpg"):
        (folder / "class-0" / name).write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"2 images cannot be read, more than the 1 allowed: class-0/00"):
        pack(f"imagefolder:{folder}", tmp_path / "out")
    assert not (tmp_path / "out" / "train" / "index.json").exists()
    with pytest.raises(UserError, match="packing has not finished"):
        split_folder(tmp_path / "out" / "train", "train")
    assert pack(f"imagefolder:{folder}", tmp_path / "out", max_bad=0.5).indexes["train"].samples == 4


@pytest.mark.parametrize("value", [float("nan"), -1.0, -1e-9, 1.001, float("inf")])
def test_a_part_that_may_be_bad_is_between_none_and_all(value: float, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="from 0 to 1") as caught:
        pack(f"imagefolder:{images}", tmp_path / "out", max_bad=value)
    assert caught.value.field == "max-bad"
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_only_image_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match="no image can be read: cat/a"):
        pack(f"imagefolder:{tmp_path / 'in'}", tmp_path / "out", max_bad=1.0)


def test_a_single_class_is_packed(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1, 3)
    assert pack(f"imagefolder:{tmp_path / 'in'}", tmp_path / "out").indexes["train"].classes == ("class-0",)


def test_killed_and_called_again_gives_the_same_bytes(images: Path, shards: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scaling.cli", "data", "pack", f"imagefolder:{images}", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        [*command, "--shard-samples", "10"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    parts = tmp_path / "out" / "train" / PARTS
    deadline = time.monotonic() + 60
    while not list(parts.glob("shard-*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (tmp_path / "out" / "val" / "index.json").exists():
        with pytest.raises(UserError):
            split_folder(tmp_path / "out", "val")
    pack(f"imagefolder:{images}", tmp_path / "out", shard_samples=10)
    assert digests(tmp_path / "out") == digests(shards)


def test_two_at_once_are_refused(images: Path, tmp_path: Path) -> None:
    def again(split: str, done: int, total: int) -> None:
        pack(f"imagefolder:{images}", tmp_path, shard_samples=10)

    with pytest.raises(UserError, match="another pack is at work"):
        pack(f"imagefolder:{images}", tmp_path, shard_samples=10, progress=again)


def test_finished_shards_are_not_written_again(images: Path, shards: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(split: str, done: int, total: int) -> None:
        if done >= 30:
            raise StopError

    with pytest.raises(StopError):
        pack(f"imagefolder:{images}", tmp_path, shard_samples=10, progress=stop)
    first = tmp_path / "train" / "shard-000000.tar"
    before = first.stat().st_ino
    seen: list[int] = []
    pack(f"imagefolder:{images}", tmp_path, shard_samples=10, progress=lambda split, done, total: seen.append(done))
    assert seen[0] == 30
    assert first.stat().st_ino == before
    assert digests(tmp_path) == digests(shards)


def test_splits_are_found_from_the_output_or_one_of_them(shards: Path, tmp_path: Path) -> None:
    assert split_folder(shards, "test") == split_folder(shards, "val") == shards / "val"
    assert split_folder(shards / "val", "test") == shards / "val"
    with pytest.raises(UserError, match="this folder is the split train"):
        split_folder(shards / "train", "test")
    with pytest.raises(UserError, match="no such folder"):
        split_folder(tmp_path / "nothing", "train")
    with pytest.raises(UserError, match="it holds the splits train, val"):
        read_index(shards)


def test_an_index_that_is_broken_or_of_another_time(shards: Path, tmp_path: Path) -> None:
    text = (shards / "train" / "index.json").read_text()
    (tmp_path / "index.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="not JSON"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        read_index(tmp_path)


@pytest.mark.parametrize("cut", [True, False])
def test_a_finished_shard_that_is_cut_or_gone_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    """Between a killed packing and the next: the index would list what is not there."""
    images = write_images(tmp_path / "images", classes=2, each=6)
    with monkeypatch.context() as patched:
        patched.delattr("data.pack._finish")
        with pytest.raises(NameError):
            pack(f"imagefolder:{images}", tmp_path / "out", shard_samples=5)
    shard = tmp_path / "out" / "train" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:1000]) if cut else shard.unlink()
    pack(f"imagefolder:{images}", tmp_path / "out", shard_samples=5)
    assert verify(tmp_path / "out" / "train") == []
