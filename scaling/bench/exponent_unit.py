"""Exponentials that a GPU's units compute when nothing else holds them up: chains in registers, written once."""

# Triton's language has no Python types (3.6 looks an annotation up as a global).
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROUNDS, BLOCK, WARPS = 1024, 1024, 4
EXPONENTIALS = ROUNDS * BLOCK
"""Of one program: eight independent chains a thread, more than a unit's latency needs with 32 programs a processor."""


@triton.jit
def exponentials(out, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x = place.to(tl.float32) * (-1.0 / BLOCK)
    for _ in range(ROUNDS):
        x = tl.exp2(-x)  # the sign is the instruction's own modifier
    tl.store(out + tl.program_id(0) * BLOCK + place, x)


def exponentials_in_registers(programs: int, device: torch.device) -> None:
    """Launches `programs` times EXPONENTIALS exponentials."""
    out = torch.empty(programs * BLOCK, device=device)
    exponentials[(programs,)](out, ROUNDS=ROUNDS, BLOCK=BLOCK, num_warps=WARPS)
