"""What the programs of a backward kernel have each summed for themselves, added up: one launch for all results."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 1024
"""Of a program's tile of parts and values."""
MANY = 1 << 18
"""Values from which on there are programs enough without sharing a value's parts among the threads of one."""


@triton.jit
def sum_parts(
    parts, first, second, third, count, rows,
    FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, BY_ROW: tl.constexpr,
    PARTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The sum over parts (count, rows, FIRST + SECOND + THIRD), or (count, FIRST + SECOND + THIRD, rows) unless BY_ROW,
    cut into first (rows, FIRST), second (rows, SECOND) and third (rows, THIRD), each in its dtype."""
    width = FIRST + SECOND + THIRD
    at = tl.program_id(0).to(tl.int64) * WIDE + tl.arange(0, WIDE)[None, :]
    part = tl.arange(0, PARTS)[:, None]
    sums = tl.zeros([PARTS, WIDE], tl.float32)
    for start in range(0, count, PARTS):
        there = (start + part < count) & (at < rows * width)
        sums += tl.load(parts + (start + part).to(tl.int64) * rows * width + at, mask=there, other=0.0)
    total = tl.sum(sums, axis=0, keep_dims=True)
    row, column = (at // width, at % width) if BY_ROW else (at % rows, at // rows)
    there = at < rows * width
    tl.store(first + row * FIRST + column, total.to(first.dtype.element_ty), mask=there & (column < FIRST))
    if SECOND:
        column -= FIRST
        inside = there & (column >= 0) & (column < SECOND)
        tl.store(second + row * SECOND + column, total.to(second.dtype.element_ty), mask=inside)
    if THIRD:
        column -= SECOND
        tl.store(third + row * THIRD + column, total.to(third.dtype.element_ty), mask=there & (column >= 0))


def add_up(parts: Tensor, outputs: Sequence[Tensor], *, by_row: bool) -> None:
    """Sums contiguous float32 `parts` over their first dimension into up to three contiguous outputs of as many rows.

    A part has a row of each output side by side, or, unless `by_row`, their columns one after another.
    """
    count, rows = parts.shape[0], parts.numel() // parts.shape[0] // sum(output.shape[-1] for output in outputs)
    first, second, third = (*outputs, outputs[-1], outputs[-1])[:3]
    widths = [*(output.shape[-1] for output in outputs), 0, 0]
    columns = rows * sum(widths)
    together = 4 if columns >= MANY else min(32, triton.next_power_of_2(count))
    wide = ELEMENTS // together
    sum_parts[triton.cdiv(columns, wide),](
        parts, first, second, third, count, rows, *widths[:3], by_row, PARTS=together, WIDE=wide, num_warps=4
    )
