"""Data sets by name: a built-in one, a folder of class folders, or ImageNet as it is distributed."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Final

import numpy as np

from data import download
from data.index import EVALUATION_SPLITS, TRAIN
from data.sources import Arrays, Source, Split, class_folders, folder_split
from scaling.errors import UserError

VALID: Final = (
    "fashion-mnist[:DIR], cifar10[:DIR], imagefolder:DIR (DIR/CLASS/*, or DIR/train/CLASS/* with DIR/val or DIR/test), "
    "imagenet:DIR (the original tars, or folders, with the ground truth of val)"
)

FASHION_MNIST_CLASSES: Final = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

SIZES: Final = {
    "fashion-mnist": {"train": 60_000, "test": 10_000, "classes": 10},
    "cifar10": {"train": 50_000, "test": 10_000, "classes": 10},
    "imagenet": {"train": 1_281_167, "test": 50_000, "classes": 1000},
}


def known_sizes(source: str) -> dict[str, int] | None:
    """{"train": n, "test": n, "classes": c} of a built-in source, without its data; None where it is not known."""
    return SIZES.get(source.partition(":")[0])


def open_source(source: str, cache: Path = download.CACHE) -> Source:
    """The source that `source` names (see VALID), its files found or downloaded; UserError if it names none."""
    name, _, location = source.partition(":")
    folder = Path(location).expanduser() if location else None
    if name == "fashion-mnist":
        return fashion_mnist(folder, cache)
    if name == "cifar10":
        return cifar10(folder, cache)
    if name in ("imagefolder", "imagenet"):
        if folder is None or not folder.is_dir():
            raise UserError("source", source, VALID, why=f"no folder {folder}" if folder else "it needs a folder")
        if name == "imagefolder":
            return image_folder(folder)
        from data.imagenet import imagenet  # its scipy would slow down every plan of a study

        return imagenet(folder)
    raise UserError("source", source, VALID)


def fashion_mnist(folder: Path | None, cache: Path) -> Source:
    """Fashion-MNIST (Xiao et al. 2017): 28 x 28 grey pixels in a border of 2 zeros, so that patches of 4 and 8 fit."""
    files = download.fashion_mnist_files(folder, cache)
    splits = []
    for split, stem in ((TRAIN, "train"), (EVALUATION_SPLITS[0], "t10k")):
        with download.open_plain(files / f"{stem}-images-idx3-ubyte") as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        with download.open_plain(files / f"{stem}-labels-idx1-ubyte") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int32)
        padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
        splits.append(Split(split, _numbered(split, len(labels)), labels, Arrays(padded)))
    return Source("fashion-mnist", FASHION_MNIST_CLASSES, tuple(splits))


def cifar10(folder: Path | None, cache: Path) -> Source:
    """CIFAR-10 (Krizhevsky 2009), 32 x 32 RGB."""
    archive = download.cifar10_archive(folder, cache)
    with tarfile.open(archive) as tar:
        # The sha256 was checked, so these pickles are the official ones.
        parts = {
            Path(member.name).name: pickle.load(file, encoding="latin1")
            for member in tar
            if member.isfile() and (file := tar.extractfile(member)) and not member.name.endswith(".html")
        }
    classes = tuple(parts["batches.meta"]["label_names"])
    batches = {TRAIN: [f"data_batch_{n}" for n in range(1, 6)], EVALUATION_SPLITS[0]: ["test_batch"]}
    splits = []
    for split, names in batches.items():
        planes = np.concatenate([parts[name]["data"] for name in names]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([parts[name]["labels"] for name in names]).astype(np.int32)
        pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        splits.append(Split(split, _numbered(split, len(labels)), labels, Arrays(pixels)))
    return Source("cifar10", classes, tuple(splits))


def image_folder(folder: Path) -> Source:
    """DIR/CLASS/* as one split named train, or DIR/train/CLASS/* and DIR/val or DIR/test.

    UserError for DIR/val or DIR/test alone: as classes they would be packed without a word, though they are splits.
    """
    found = [name for name in (TRAIN, *EVALUATION_SPLITS) if (folder / name).is_dir()]
    if found and TRAIN not in found:
        there = " and ".join(f"{name}/" for name in found)
        why = f"it has {there} but no {TRAIN}/; classes of such a name are packed as DIR/{TRAIN}/CLASS/*"
        raise UserError("source", f"imagefolder:{folder}", VALID, why=why)
    found = found or [""]
    classes = class_folders(folder / found[0])
    splits = []
    for name in found:
        unknown = sorted(set(class_folders(folder / name)) - set(classes))
        if unknown:
            why = f"the split {name} has classes that {TRAIN} lacks: {', '.join(unknown[:5])}"
            raise UserError("source", f"imagefolder:{folder}", VALID, why=why)
        splits.append(folder_split(name or TRAIN, folder / name, classes))
    return Source("imagefolder", tuple(classes), tuple(splits))


def _numbered(split: str, count: int) -> list[str]:
    return [f"{split}-{number:06d}" for number in range(count)]
