"""Random numbers as a counter-based function of (seed, purpose, global position, ...): no generator, no state.

World size, micro-batch, recomputation and resume therefore change nothing. The hash is the finaliser of splitmix64
(Steele, Lea, Flood 2014), applied once for every counter.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
import torch

from models.noise import Noise

_WEYL = np.uint64(0x9E3779B97F4A7C15)


def _finalise(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniform(seed: int, purpose: str, positions: npt.ArrayLike, *shape: int) -> torch.Tensor:
    """Uniforms in [0, 1) of 24 bits, (len(positions), *shape) float32.

    The entry at [i, j, ...] depends on (seed, purpose, positions[i], j, ...) alone.
    """
    with np.errstate(over="ignore"):
        key = np.array([seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(purpose.encode())], dtype=np.uint64)
        state = _finalise(_finalise(key[:1] + _WEYL) + key[1:] * _WEYL)
        counters = [np.asarray(positions, dtype=np.uint64), *(np.arange(size, dtype=np.uint64) for size in shape)]
        for counter in counters:
            state = _finalise(state[..., None] + (counter + np.uint64(1)) * _WEYL)
    bits = (state[0] >> np.uint64(40)).astype(np.float32)
    return torch.from_numpy(bits * np.float32(2.0**-24))


def step_noise(seed: int, stage: str, positions: torch.Tensor, *, tokens: int, depth: int) -> Noise:
    """The noise of one micro-batch whose samples stand at `positions` (micro_batch,) in the whole job.

    `tokens` > 0 asks for MAE's mask (micro_batch, tokens); `depth` > 0 for drop path (micro_batch, depth, 2).
    """
    at = positions.numpy()
    return Noise(
        mask=uniform(seed, f"{stage}.mask", at, tokens) if tokens else None,
        drop_path=uniform(seed, f"{stage}.drop_path", at, depth, 2) if depth else None,
    )
