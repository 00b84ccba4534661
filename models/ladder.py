"""The ladder of sizes. pico to micro are for CPU studies (32 px, patch 4); base, large and huge are the paper's."""

from __future__ import annotations

from typing import NamedTuple

from scaling.errors import UserError


class Size(NamedTuple):
    """What a name on the ladder stands for."""

    depth: int
    width: int


SIZES: dict[str, Size] = {
    "pico": Size(6, 64),
    "nano": Size(6, 96),
    "micro": Size(6, 128),
    "tiny": Size(12, 192),
    "small": Size(12, 384),
    "base": Size(12, 768),
    "large": Size(24, 1024),
    "huge": Size(24, 1536),
}


def size_named(name: str) -> Size:
    """The size called `name`; UserError lists the names."""
    if name not in SIZES:
        raise UserError("size", name, SIZES)
    return SIZES[name]
