"""What shards hold, for people: counts and sizes, and a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.images import decode
from data.index import INDEX, PACK_FIRST, SAMPLES, missing_index, read_index, read_samples
from data.store import Store
from scaling.errors import UserError
from scaling.files import atomic_write

SHEET_CLASSES: Final = 20
SHEET_COLUMNS: Final = 8
TILE: Final = 96  # pixels
LABEL_WIDTH: Final = 160


def split_folders(shards: str | Path) -> list[Path]:
    """The split folders in the output of pack, or `shards` itself when it is one; UserError when there is none."""
    folder = Path(shards)
    if (folder / INDEX).is_file():
        return [folder]
    found = [child for child in sorted(folder.glob("*")) if (child / INDEX).is_file()]
    if not found:
        raise UserError("shards", str(shards), PACK_FIRST, why=missing_index(folder))
    return sorted(found, key=lambda child: child.name != "train")


def describe(folder: Path) -> dict[str, Any]:
    """Facts of one split: its index in short, and the number of images of every class."""
    index = read_index(folder)
    labels = read_samples(folder / SAMPLES, index)["label"]
    counts = np.bincount(labels, minlength=len(index.classes))
    return {
        "split": index.split,
        "source": index.source,
        "fingerprint": index.fingerprint,
        "images": index.samples,
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "width": index.images.width,
        "height": index.images.height,
        "formats": index.images.formats,
        "mean": index.mean,
        "std": index.std,
        "left_out": len(index.left_out),
        "classes": dict(zip(index.classes, counts.tolist(), strict=True)),
    }


def contact_sheet(folder: Path, path: Path) -> None:
    """Writes a PNG with a row of images, evenly spaced over the shards, for each of the first SHEET_CLASSES classes."""
    store = Store(folder)
    classes = store.index.classes[:SHEET_CLASSES]
    sheet = Image.new("RGB", (LABEL_WIDTH + SHEET_COLUMNS * TILE, len(classes) * TILE), "white")
    draw = ImageDraw.Draw(sheet)
    labels = np.asarray(store.samples["label"])
    for row, name in enumerate(classes):
        draw.text((8, row * TILE + TILE // 2 - 6), name[:24], fill="black", font=ImageFont.load_default(12))
        members = np.flatnonzero(labels == row)
        chosen = members[np.linspace(0, len(members) - 1, min(SHEET_COLUMNS, len(members))).astype(int)]
        for column, sample in enumerate(chosen.tolist()):
            tile = Image.fromarray(decode(store.read(sample)[0]))
            tile = tile.resize(_fitted(tile.size), Image.Resampling.NEAREST if max(tile.size) < TILE else None)
            sheet.paste(tile, (LABEL_WIDTH + column * TILE, row * TILE))
    with atomic_write(path) as file:
        sheet.save(file, "PNG")


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    """The size with its longer side a little below TILE."""
    scale = (TILE - 4) / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
