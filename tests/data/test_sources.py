from __future__ import annotations

import csv
import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data import download
from data.datasets import known_sizes, open_source
from data.imagenet import NORMALIZATION
from data.sources import unique_keys
from scaling.errors import UserError
from tests.data.conftest import write_images


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_sizes_are_known_without_data() -> None:
    assert known_sizes("fashion-mnist") == {"train": 60_000, "test": 10_000, "classes": 10}
    assert known_sizes("cifar10:/somewhere") == {"train": 50_000, "test": 10_000, "classes": 10}
    assert known_sizes("imagefolder:/somewhere") is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("mnist", "fashion-mnist"),
        ("imagefolder", "it needs a folder"),
        ("imagefolder:/no/such/folder", "no folder"),
        ("imagenet:/no/such/folder", "no folder"),
        ("cifar10:/no/such/folder", "no cifar-10-python.tar.gz"),
        ("fashion-mnist:/no/such/folder", "no train-images-idx3-ubyte"),
    ],
)
def test_wrong_sources_say_what_is_valid(source: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        open_source(source)
    assert source.split(":")[0] in str(caught.value)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no class folders"):
        open_source(f"imagefolder:{tmp_path}")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="no images"):
        open_source(f"imagefolder:{tmp_path}")


def test_one_split_or_two(tmp_path: Path, images: Path) -> None:
    both = open_source(f"imagefolder:{images}")
    assert [(split.name, len(split.keys)) for split in both.splits] == [("train", 60), ("val", 15)]
    one = open_source(f"imagefolder:{images / 'train'}")
    assert [(split.name, len(split.keys)) for split in one.splits] == [("train", 60)]
    assert one.classes == ("class-0", "class-1", "class-2")
    write_images(tmp_path / "train", 2, 1)
    write_images(tmp_path / "test", 3, 1)
    with pytest.raises(UserError, match="classes that train lacks: class-2"):
        open_source(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(("splits", "said"), [(("test", "val"), "test/ and val/"), (("val",), "val/")])
def test_splits_without_training_images_are_no_classes(splits: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for split in splits:
        write_images(tmp_path / split, 2, 1)
    with pytest.raises(UserError, match=rf"{tmp_path}' .*it has {said} but no train/.*DIR/train/CLASS") as caught:
        open_source(f"imagefolder:{tmp_path}")
    assert "DIR/train/CLASS/* with DIR/val or DIR/test" in caught.value.valid


def test_classes_that_are_called_as_splits_are(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2, 1)
    (tmp_path / "train").mkdir()
    for number, name in enumerate(("test", "val")):
        (tmp_path / "images" / f"class-{number}").rename(tmp_path / "train" / name)
    (tmp_path / "images").rmdir()
    packed = open_source(f"imagefolder:{tmp_path}")  # as the error above says
    assert (packed.classes, [split.name for split in packed.splits]) == (("test", "val"), ["train"])


def test_keys_are_unique_and_without_dots() -> None:
    assert unique_keys(["a/x.jpg", "a/x.png", "a/x.y.jpg", "b.c/x.jpg"]) == ["a/x", "a/x_png", "a/x_y", "b.c/x"]


def test_changed_bytes_of_a_built_in_source_are_refused(tmp_path: Path) -> None:
    for name in download.FASHION_MNIST:
        with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
            file.write(struct.pack(">II", 2049, 0))
    with pytest.raises(UserError, match="another sha256"):
        open_source(f"fashion-mnist:{tmp_path}")


def test_what_was_tried_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Neither apt nor the public address: an empty PATH, and an address that nobody answers.
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(download, "FASHION_MNIST_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"tried apt-get.*no apt-get.*127\.0\.0\.1:9.*DIR") as caught:
        download.fashion_mnist_files(None, tmp_path / "cache")
    assert "train-images-idx3-ubyte" in caught.value.valid


WORDNET = ["n01440764", "n02119789", "n04285008"]


def imagenet_val(folder: Path, *, tarred: bool) -> list[int]:
    """Six validation images whose labels are 2 0 1 1 0 2, as a tar or as a flat folder."""
    labels = [2, 0, 1, 1, 0, 2]
    files = {f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(40 * n) for n in range(1, 7)}
    if tarred:
        (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(files))
    else:
        (folder / "val").mkdir()
        for name, data in files.items():
            (folder / "val" / name).write_bytes(data)
    return labels


def test_imagenet_from_its_tars_and_development_kit(tmp_path: Path) -> None:
    inner = {
        f"{name}.tar": tar_of({f"{name}_{n}.JPEG": jpeg(10 * n + label) for n in range(4)})
        for label, name in enumerate(WORDNET)
    }
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of(dict(reversed(inner.items()))))
    labels = imagenet_val(tmp_path, tarred=True)
    # The kit numbers classes otherwise: ids 3, 1, 2 for the sorted WordNet ids.
    kit_ids = [3, 1, 2]
    kinds = np.dtype([("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    synsets = np.array([(i, w, "words") for i, w in zip(kit_ids, WORDNET, strict=True)], kinds)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "\n".join(str(kit_ids[label]) for label in labels) + "\n"
    kit = {"kit/data/meta.mat": meta.getvalue(), "kit/data/ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    with gzip.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "wb") as file:
        file.write(tar_of(kit))

    source = open_source(f"imagenet:{tmp_path}")
    assert source.classes == tuple(WORDNET)
    assert source.normalization == NORMALIZATION
    train, val = source.splits
    assert train.keys[5] == "n02119789/n02119789_1"
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert train.reader.read(5) == ("jpg", jpeg(11))
    assert val.labels.tolist() == labels
    assert val.reader.read(2) == ("jpg", jpeg(120))


def test_imagenet_tars_cut_anywhere_are_refused(tmp_path: Path) -> None:
    """Every 256 bytes, so in images, in their padding, in headers and between two."""
    inner = tar_of({f"n01440764_{n}.JPEG": jpeg(10 * n) for n in range(2)})
    outer = tar_of({f"{name}.tar": inner for name in WORDNET[:2]})
    for name, whole in (("ILSVRC2012_img_train.tar", outer), ("train/n01440764.tar", inner)):
        folder = tmp_path / whole[:1].hex() / Path(name).stem
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(whole)
        assert len(open_source(f"imagenet:{folder}").splits[0].keys) == (4 if whole is outer else 2)
        with tarfile.open(folder / name) as tar:
            end = tar.getmembers()[-1]
        for size in range(0, end.offset_data + end.size, 256):
            (folder / name).write_bytes(whole[:size])
            with pytest.raises(UserError, match=rf"{name}.* is not valid") as caught:
                open_source(f"imagenet:{folder}")
            assert caught.value.valid == "a complete tar file"
            assert caught.value.why


def test_a_development_kit_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for label, name in enumerate(WORDNET):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / f"{name}_7.JPEG").write_bytes(jpeg(label))
    imagenet_val(tmp_path, tarred=False)
    noise = np.random.default_rng(0).bytes(3000)  # does not compress: cuts fall into the data too
    kit = gzip.compress(tar_of({"kit/data/meta.mat": noise, "kit/data/ILSVRC2012_validation_ground_truth.txt": noise}))
    path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    damaged = bytearray(kit)
    damaged[len(kit) // 2] ^= 255
    for data in (*(kit[:size] for size in range(0, len(kit) - 8, 250)), bytes(damaged)):
        path.write_bytes(data)
        with pytest.raises(UserError, match="a complete tar file"):
            open_source(f"imagenet:{tmp_path}")


def test_imagenet_unpacked_with_the_solution_file(tmp_path: Path) -> None:
    for label, name in enumerate(WORDNET):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / f"{name}_7.JPEG").write_bytes(jpeg(label))
    labels = imagenet_val(tmp_path, tarred=False)
    with pytest.raises(UserError, match="no ground truth of val"):
        open_source(f"imagenet:{tmp_path}")
    with (tmp_path / "LOC_val_solution.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        for number in (3, 1, 2, 6, 5, 4):
            writer.writerow([f"ILSVRC2012_val_{number:08d}", f"{WORDNET[labels[number - 1]]} 85 1 499 272"])
    train, val = open_source(f"imagenet:{tmp_path}").splits
    assert train.keys == ["n01440764/n01440764_7", "n02119789/n02119789_7", "n04285008/n04285008_7"]
    assert val.labels.tolist() == labels
