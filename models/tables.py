"""Tables that a module computes rather than learns: how they are registered, the sin-cos positions, their resizing."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WithTables(nn.Module):
    """A module some of whose buffers follow from its config. `tables` computes them; it is called again where a module
    built on the meta device gets its memory."""

    kept: tuple[str, ...] = ()
    """Tables that belong in the state dict, because transfer resizes them."""

    def tables(self) -> dict[str, Tensor]:
        """Buffers by name."""
        raise AssertionError(f"{type(self).__name__} has no tables")

    def register_tables(self) -> None:
        """To be called at the end of the constructor."""
        for name, table in self.tables().items():
            self.register_buffer(name, table, persistent=name in self.kept)

    def fill_tables(self) -> None:
        """Writes every table into its buffer."""
        for name, table in self.tables().items():
            self.get_buffer(name).copy_(table)


def make_tables(module: nn.Module, device: torch.device) -> None:
    """Gives all parts of `module`, built on the meta device, their tables on `device`."""
    with device:
        for part in module.modules():
            if isinstance(part, WithTables):
                part.register_tables()


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed 2-D positions (1, side * side, width) in the convention of MAE (He et al. 2022; sheet 1.5).

    The first half of the channels carries the column, the second the row; in each half all sines, then all cosines.
    Computed in float64, so that every machine rounds to the same float32 values; the official table is a float32's
    rounding (1e-7) off.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = along[None].expand(side, -1, -1)
    rows = along[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, side * side, width).float()


def with_middle_row(table: Tensor, middle: int, row: Tensor | None = None) -> Tensor:
    """A table (1, length, width) with one more row, zero by default, at index `middle`: the class token's."""
    row = table.new_zeros(1, 1, table.shape[2]) if row is None else row
    return torch.cat([table[:, :middle], row, table[:, middle:]], dim=1)


def resize_positions(table: Tensor, side: int, class_token: bool) -> Tensor:
    """Positions (1, length, width) of any square grid, with or without a class token in the middle, on another grid.

    Bicubic, align_corners off (sheet 1.5). The row of a class token is kept, dropped, or made of zeros, as needed.
    """
    length = table.shape[1]
    source = math.isqrt(length)
    token = None
    if source * source != length:  # no square of two or more is one above a square, so this one holds a class token
        source = math.isqrt(length - 1)
        middle = (length - 1) // 2
        token = table[:, middle : middle + 1]
        table = torch.cat([table[:, :middle], table[:, middle + 1 :]], dim=1)
    if source != side:
        grid = table.float().reshape(1, source, source, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        table = resized.flatten(2).transpose(1, 2).to(table.dtype)
    return with_middle_row(table, side * side // 2, token) if class_token else table
