"""Exponentials that a GPU's units compute when nothing else holds them up: chains in registers, written once."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

ROUNDS, BLOCK, WARPS = 1024, 1024, 4
EXPONENTIALS = ROUNDS * BLOCK
"""Of one program: eight independent chains a thread, more than a unit's latency needs with 32 programs a processor."""


@triton.jit
def exponentials(out: Any, ROUNDS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    place = tl.arange(0, BLOCK)
    x = place.to(tl.float32) * (-1.0 / BLOCK)
    for _ in range(ROUNDS):
        x = tl.exp2(-x)  # the sign is the instruction's own modifier
    tl.store(out + tl.program_id(0) * BLOCK + place, x)


def exponentials_in_registers(programs: int, device: torch.device) -> None:
    """Launches `programs` times EXPONENTIALS exponentials."""
    out = torch.empty(programs * BLOCK, device=device)
    exponentials[(programs,)](out, ROUNDS=ROUNDS, BLOCK=BLOCK, num_warps=WARPS)
