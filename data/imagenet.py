"""ImageNet-1K as it is distributed (ILSVRC 2012): the original tars, or what people unpack them to.

    DIR/ILSVRC2012_img_train.tar (a tar of n01440764.tar ...), or those 1000 tars in DIR/train, or DIR/train/CLASS/*
    DIR/ILSVRC2012_img_val.tar, or DIR/val/*.JPEG, both with the ground truth; or DIR/val/CLASS/*
    ground truth: ILSVRC2012_validation_ground_truth.txt with meta.mat (development kit, loose or in its tar.gz),
    or LOC_val_solution.csv

Classes are WordNet ids in sorted order, the numbering that every published model uses; the development kit counts
otherwise, so its numbers are translated through its meta.mat.
"""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from data.index import TRAIN
from data.sources import IMAGE_SUFFIXES, Files, Reader, Source, Split, class_folders, folder_split, unique_keys
from scaling.errors import UserError

TRAIN_TAR: Final = "ILSVRC2012_img_train.tar"
VAL_TAR: Final = "ILSVRC2012_img_val.tar"
DEVKIT_TAR: Final = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH: Final = "ILSVRC2012_validation_ground_truth.txt"
META: Final = "meta.mat"
SOLUTION: Final = "LOC_val_solution.csv"

NORMALIZATION: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The constants that published ImageNet models are trained with (ARM's released code among them)."""

GROUND_TRUTH: Final = f"{TRUTH} and {META} (or {DEVKIT_TAR}) or {SOLUTION}"
LAYOUT: Final = f"a folder with {TRAIN_TAR} or train/, and {VAL_TAR} or val/ with {GROUND_TRUTH}"


class Member(NamedTuple):
    """A file inside a tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarRanges:
    """A reader of images inside tar files: image i is the bytes `ranges[i]` = (offset, size) of tars[which[i]]."""

    tars: Sequence[Path]
    which: NDArray[np.int32]
    ranges: NDArray[np.int64]

    def read(self, i: int) -> tuple[str, bytes]:
        offset, size = self.ranges[i].tolist()
        with self.tars[self.which[i]].open("rb") as file:
            file.seek(offset)
            return "jpg", file.read(size)

    def stamp(self, i: int) -> object:
        return int(self.ranges[i, 1])


def imagenet(folder: Path) -> Source:
    """ImageNet-1K in `folder`: splits train and val, or train alone where there is no val."""
    train, classes = _train(folder)
    splits = [train]
    if (folder / VAL_TAR).is_file() or (folder / "val").is_dir():
        splits.append(_val(folder, classes))
    return Source("imagenet", tuple(classes), tuple(splits), NORMALIZATION)


def _train(folder: Path) -> tuple[Split, list[str]]:
    whole, unpacked = folder / TRAIN_TAR, folder / "train"
    if whole.is_file():
        return _train_split(_class_tars_within(whole))
    if not unpacked.is_dir():
        raise _refuse(folder, f"neither {TRAIN_TAR} nor train/ is there")
    tars = sorted(unpacked.glob("n*.tar"))
    if tars:
        return _train_split({path.stem: (path, _members_of(path)) for path in tars})
    classes = class_folders(unpacked)
    return folder_split(TRAIN, unpacked, classes), classes


def _class_tars_within(whole: Path) -> dict[str, tuple[Path, list[Member]]]:
    """The images of the class tars inside one tar, where they stand in it: nothing is unpacked."""
    found = {}
    with _open_tar(whole) as outer:
        for entry in outer:
            inner = outer.extractfile(entry)
            if inner is not None and entry.name.endswith(".tar"):
                with _open_tar(whole, inner) as tar:
                    found[Path(entry.name).stem] = (whole, _members(tar, entry.offset_data))
    return dict(sorted(found.items()))


def _train_split(found: dict[str, tuple[Path, list[Member]]]) -> tuple[Split, list[str]]:
    classes = list(found)
    rows = [(label, member) for label, (_, members) in enumerate(found.values()) for member in members]
    keys = unique_keys([f"{classes[label]}/{member.name}" for label, member in rows])
    labels = np.array([label for label, _ in rows], np.int32)
    tars = [path for path, _ in found.values()]
    return Split(TRAIN, keys, labels, TarRanges(tars, labels, _ranges([member for _, member in rows]))), classes


def _val(folder: Path, classes: list[str]) -> Split:
    whole, unpacked = folder / VAL_TAR, folder / "val"
    if whole.is_file():
        members = _members_of(whole)
        names = [member.name for member in members]
        reader: Reader = TarRanges([whole], np.zeros(len(names), np.int32), _ranges(members))
    else:
        names = sorted(path.name for path in unpacked.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not names:
            found = class_folders(unpacked)
            if found != classes:
                raise _refuse(folder, f"val/ has {len(found)} class folders that are not those of the training split")
            return folder_split("val", unpacked, classes)
        reader = Files(unpacked, names)
    return Split("val", unique_keys(names), _truth(folder, names, classes), reader)


def _truth(folder: Path, names: Sequence[str], classes: Sequence[str]) -> NDArray[np.int32]:
    """(samples,) the class of each validation image, from either form of the ground truth."""
    number_of = {wordnet: number for number, wordnet in enumerate(classes)}
    stems = [Path(name).stem for name in names]
    try:
        if (folder / SOLUTION).is_file():
            with (folder / SOLUTION).open(newline="") as file:
                solution = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
            wordnets = [solution[stem] for stem in stems]
        else:
            truth, meta = _development_kit(folder)
            # Images are numbered from 1: ILSVRC2012_val_00000001.
            wordnets = [meta[truth[int(stem.rpartition("_")[2]) - 1]] for stem in stems]
        return np.array([number_of[wordnet] for wordnet in wordnets], np.int32)
    except (KeyError, IndexError, ValueError) as error:
        raise _refuse(folder, f"the ground truth does not fit the images: {error!r}") from None


def _development_kit(folder: Path) -> tuple[list[int], dict[int, str]]:
    """The ids of the validation images in order, and the WordNet id of each such id."""
    if (folder / DEVKIT_TAR).is_file():
        with _open_tar(folder / DEVKIT_TAR) as tar:
            files = {Path(entry.name).name: tar.extractfile(entry) for entry in tar.getmembers() if entry.isfile()}
            parts = {name: file.read() for name, file in files.items() if file and name in (TRUTH, META)}
    else:
        parts = {name: (folder / name).read_bytes() for name in (TRUTH, META) if (folder / name).is_file()}
    missing = [name for name in (TRUTH, META) if name not in parts]
    if missing:
        raise _refuse(folder, f"no ground truth of val: {SOLUTION} is not there, nor {' and '.join(missing)}")
    synsets = loadmat(io.BytesIO(parts[META]), squeeze_me=True)["synsets"]
    return [int(line) for line in parts[TRUTH].split()], {
        int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets
    }


def _refuse(folder: Path, why: str) -> UserError:
    return UserError("source", f"imagenet:{folder}", LAYOUT, why=why)


@contextmanager
def _open_tar(path: Path, file: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """The tar at `path`, or inside it as `file`, read to its end in the block; UserError when it is cut or damaged."""
    try:
        with tarfile.open(path, "r:*") if file is None else tarfile.open(fileobj=file, mode="r:") as tar:
            yield tar
            _check_end(tar)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError("source", str(path), "a complete tar file", why=str(error)) from None


def _check_end(tar: tarfile.TarFile) -> None:
    """ReadError without the block of zeros that ends a tar: tarfile takes one cut off in a header for complete."""
    tar.getmembers()
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends before its closing block")


def _members_of(path: Path) -> list[Member]:
    with _open_tar(path) as tar:
        return _members(tar, 0)


def _members(tar: tarfile.TarFile, base: int) -> list[Member]:
    """The files of a tar that starts at byte `base`, in the order of their names."""
    return sorted(Member(entry.name, base + entry.offset_data, entry.size) for entry in tar if entry.isfile())


def _ranges(members: Sequence[Member]) -> NDArray[np.int64]:
    return np.array([(member.offset, member.size) for member in members], np.int64).reshape(-1, 2)
