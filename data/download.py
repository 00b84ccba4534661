"""The built-in data sets' files, from Debian, a public address or a local copy, each checked by its sha256."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from scaling.errors import UserError
from scaling.files import atomic_write

CACHE: Final = Path(".cache/armscale")
TIMEOUT: Final = 60  # seconds without a byte

FASHION_MNIST_PACKAGE: Final = "dataset-fashion-mnist"
FASHION_MNIST_ADDRESS: Final = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
# Of the decompressed bytes: Debian packs the same files anew.
FASHION_MNIST: Final = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CIFAR10_ADDRESS: Final = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_ARCHIVE: Final = {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"}


class FetchError(Exception):
    """One way to get the files did not work; says which and why."""


def fashion_mnist_files(folder: Path | None, cache: Path = CACHE) -> Path:
    """A folder with the four decompressed IDX files: the user's `folder`, else the cache, filled where needed."""
    ways = {
        f"apt-get download {FASHION_MNIST_PACKAGE}": _fashion_mnist_from_debian,
        FASHION_MNIST_ADDRESS: _fashion_mnist_from_address,
    }
    return _files("fashion-mnist", FASHION_MNIST, folder, cache, ways)


def cifar10_archive(folder: Path | None, cache: Path = CACHE) -> Path:
    """The official archive of CIFAR-10 for Python: in the user's `folder` (or that file itself), else in the cache."""
    if folder is not None and folder.is_file():
        folder = folder.parent
    ways = {CIFAR10_ADDRESS: _cifar10_from_address}
    return _files("cifar10", CIFAR10_ARCHIVE, folder, cache, ways) / next(iter(CIFAR10_ARCHIVE))


def _files(
    source: str,
    sums: Mapping[str, str],
    folder: Path | None,
    cache: Path,
    ways: Mapping[str, Callable[[Path], None]],
) -> Path:
    """A folder that holds every file of `sums` with its sha256."""
    local = f"{source}:DIR with DIR holding {', '.join(sums)}"
    if folder is not None:
        wrong = _check(folder, sums)
        if wrong:
            raise UserError("source", f"{source}:{folder}", local, why="; ".join(wrong))
        return folder
    folder = cache / source
    if not _check(folder, sums):
        return folder
    tried = []
    for name, fetch in ways.items():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            fetch(folder)
        except FetchError as error:
            tried.append(f"{name}: {error}")
            continue
        wrong = _check(folder, sums)
        if not wrong:
            return folder
        tried.append(f"{name}: {'; '.join(wrong)}")
    raise UserError("source", source, local, why="tried " + "; ".join(tried))


def _check(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """What is wrong with the files; a file NAME may also be there as NAME.gz."""
    wrong = []
    for name, expected in sums.items():
        try:
            with open_plain(folder / name) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    wrong.append(f"{name} has another sha256 than {expected[:12]}...")
        except (OSError, EOFError) as error:
            wrong.append(f"{name}: {error}" if not isinstance(error, FileNotFoundError) else f"no {name} in {folder}")
    return wrong


def open_plain(path: Path) -> gzip.GzipFile:
    """Opens `path`, or `path`.gz decompressed where only that is there."""
    packed = path.with_name(path.name + ".gz")
    if packed.is_file() and not path.is_file():
        return gzip.open(packed)
    return path.open("rb")  # type: ignore[return-value]


def _fashion_mnist_from_debian(folder: Path) -> None:
    """apt with lists and cache of its own, so that neither root nor the system's lists are needed."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise FetchError("no apt-get and dpkg-deb on this machine")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name).resolve()
        (work / "lists" / "partial").mkdir(parents=True)
        (work / "cache" / "archives" / "partial").mkdir(parents=True)
        apt = ["apt-get", "-q", "-o", f"Dir::State::lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]
        apt += ["-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none", "-o", f"Acquire::http::Timeout={TIMEOUT}"]
        _command([*apt, "update"], work)
        _command([*apt, "download", FASHION_MNIST_PACKAGE], work)
        package = next(work.glob("*.deb"), None)
        if package is None:
            raise FetchError("apt-get downloaded no package")
        _command(["dpkg-deb", "-x", str(package), str(work / "tree")], work)
        for packed in work.glob("tree/**/*-ubyte.gz"):
            packed.replace(folder / packed.name)


def _command(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=15 * TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"{command[0]} did not end") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise FetchError(f"{command[0]} failed: {lines[-1]}")


def _fashion_mnist_from_address(folder: Path) -> None:
    for name in FASHION_MNIST:
        _download(f"{FASHION_MNIST_ADDRESS}/{name}.gz", folder / f"{name}.gz")


def _cifar10_from_address(folder: Path) -> None:
    for name in CIFAR10_ARCHIVE:
        _download(CIFAR10_ADDRESS, folder / name)


def _download(address: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, atomic_write(path) as file:
            shutil.copyfileobj(answer, file)
    except (OSError, ValueError) as error:
        raise FetchError(f"{address}: {error}") from None
