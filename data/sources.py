"""What a data set is to `data pack`: a source has splits, a split is a list of keys and labels, and a reader that
gives the bytes of each image file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from data.images import Pixels, encode_png
from scaling.errors import UserError

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")


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


def _images_below(folder: Path) -> Iterator[Path]:
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
