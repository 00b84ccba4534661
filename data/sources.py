"""Where images come from: a built-in data set, a folder of class folders, or ImageNet as it is distributed.

A source becomes splits; a split is a list of keys and labels, and a reader that gives the bytes of each image file.
"""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from data import download
from data.images import Pixels, encode_png
from data.index import EVALUATION_SPLITS, TRAIN
from scaling.errors import UserError

VALID: Final = (
    "fashion-mnist[:DIR], cifar10[:DIR], imagefolder:DIR (DIR/CLASS/*, or DIR/train/CLASS/* with DIR/val or DIR/test), "
    "imagenet:DIR (the original tars, or folders, with the ground truth of val)"
)
IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")

FASHION_MNIST_CLASSES: Final = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

SIZES: Final = {
    "fashion-mnist": {"train": 60_000, "test": 10_000, "classes": 10},
    "cifar10": {"train": 50_000, "test": 10_000, "classes": 10},
    "imagenet": {"train": 1_281_167, "test": 50_000, "classes": 1000},
}


class Reader(Protocol):
    """Gives the file of image `i` of a split; crosses process borders, so holds paths and not open files."""

    def read(self, i: int) -> tuple[str, bytes]:
        """(extension, bytes) of image i."""

    def stamp(self, i: int) -> object:
        """Something cheap that changes when image i does, for recognising a source."""


@dataclass(frozen=True)
class Split:
    """Keys (unique, without dots in the last part), labels (samples,) and the reader of one split."""

    name: str
    keys: Sequence[str]
    labels: NDArray[np.int32]
    reader: Reader


@dataclass(frozen=True)
class Source:
    """A data set. `normalization` is (mean, std) where the field has settled on constants, else None: measured."""

    name: str
    classes: tuple[str, ...]
    splits: tuple[Split, ...]  # training split first
    normalization: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None


@dataclass(frozen=True)
class Files:
    """A reader of one file an image."""

    root: Path
    paths: Sequence[str]

    def read(self, i: int) -> tuple[str, bytes]:
        path = self.root / self.paths[i]
        return path.suffix.lower().lstrip("."), path.read_bytes()

    def stamp(self, i: int) -> object:
        return (self.root / self.paths[i]).stat().st_size


@dataclass(frozen=True)
class Arrays:
    """A reader of pixels (samples, height, width[, 3]) that are in memory."""

    pixels: Pixels

    def read(self, i: int) -> tuple[str, bytes]:
        return "png", encode_png(self.pixels[i])

    def stamp(self, i: int) -> object:
        return self.pixels[i].shape


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
        from data.imagenet import imagenet

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


def class_folders(folder: Path) -> list[str]:
    """The class folders of `folder` that hold an image at any depth, in the order of their names."""
    children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    classes = [child.name for child in children if next(_images_below(child), None) is not None]
    if not classes:
        why = f"no images in the class folders of {folder}" if children else f"no class folders in {folder}"
        raise UserError("source", f"imagefolder:{folder}", f"DIR/CLASS/* with {', '.join(IMAGE_SUFFIXES)}", why=why)
    return classes


def folder_split(name: str, folder: Path, classes: Sequence[str]) -> Split:
    """The split `name` of the images below folder/CLASS."""
    paths: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        if (folder / class_name).is_dir():
            below = sorted(path.relative_to(folder).as_posix() for path in _images_below(folder / class_name))
            paths += below
            labels += [label] * len(below)
    return Split(name, unique_keys(paths), np.array(labels, np.int32), Files(folder, paths))


def _images_below(folder: Path) -> Any:
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def unique_keys(paths: Sequence[str]) -> list[str]:
    """WebDataset keys for relative paths: no dot after the last slash, and no two alike (a.jpg beside a.png)."""
    keys: list[str] = []
    seen: set[str] = set()
    for path in paths:
        folder, slash, name = path.rpartition("/")
        stem, _, suffix = name.rpartition(".")
        key = f"{folder}{slash}{stem.replace('.', '_')}"
        if key in seen:
            key = f"{key}_{suffix}"
        while key in seen:
            key += "_"
        seen.add(key)
        keys.append(key)
    return keys


def _numbered(split: str, count: int) -> list[str]:
    return [f"{split}-{number:06d}" for number in range(count)]
