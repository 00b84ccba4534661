"""Randomness as a function of counters: the same numbers whatever ran before, on any rank, worker and version of numpy.

The generator is SplitMix64 (Steele, Lea and Flood 2014): 64-bit words spaced by the golden ratio, each through a
mixing function. A key is a hash of named integers, such as (seed, purpose, epoch); a counter is a sample's index.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def mix(words: Words) -> Words:
    """SplitMix64's mixing function, element by element: a bijection of the 64-bit words."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def key(*parts: int | str) -> int:
    """A 64-bit key of integers and names; any change of value or order gives an unrelated key."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        state = mix(state * np.uint64(3) + np.array([(number + GOLDEN) & MASK], np.uint64))
    return int(state[0])


def words(key: int, counters: NDArray[np.integer] | Words, count: int) -> Words:
    """(n, count) random 64-bit words: row i depends on the key and counters[i] alone."""
    start = mix(counters.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(key))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return mix(start[:, None] + steps)


def uniforms(key: int, counters: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """(n, count) numbers in [0, 1) with 53 random bits each."""
    numbers: NDArray[np.float64] = (words(key, counters, count) >> np.uint64(11)).astype(np.float64)
    return numbers * 2.0**-53


def normals(key: int, counter: int, count: int) -> NDArray[np.float32]:
    """(count,) draws of the standard normal distribution (Box and Muller 1958)."""
    half = (count + 1) // 2
    pair = uniforms(key, np.array([counter]), 2 * half)[0].reshape(2, half)
    radius, angle = np.sqrt(-2 * np.log1p(-pair[0])), 2 * np.pi * pair[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].astype(np.float32)


def permutation(key: int, size: int) -> NDArray[np.int64]:
    """A random order of range(size), by sorting random words."""
    return np.argsort(words(key, np.arange(size), 1)[:, 0], kind="stable")


def permute(values: NDArray[np.int64], sizes: NDArray[np.int64], keys: Words) -> NDArray[np.int64]:
    """The image of values[i] under the permutation of range(sizes[i]) that keys[i] names, with no table.

    A Feistel network over the next even power of two, walked until it falls inside the range
    (Black and Rogaway 2002), so that one element costs the same in a block of ten and of ten million.
    """
    half = np.maximum(1, (np.ceil(np.log2(np.maximum(sizes, 2))).astype(np.uint64) + np.uint64(1)) // np.uint64(2))
    result = _feistel(values.astype(np.uint64), half, keys)
    limits = sizes.astype(np.uint64)
    outside = np.flatnonzero(result >= limits)
    while len(outside):
        result[outside] = _feistel(result[outside], half[outside], keys[outside])
        outside = outside[result[outside] >= limits[outside]]
    return result.astype(np.int64)


def _feistel(values: Words, half: Words, keys: Words, rounds: int = 6) -> Words:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for turn in range(1, rounds + 1):
        left, right = right, left ^ (mix(keys + right + np.uint64((turn * GOLDEN) & MASK)) & mask)
    return (left << half) | right
