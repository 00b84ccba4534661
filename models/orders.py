"""Orders in which tokens are visited: the four scan directions, and the clusters of autoregression."""

from __future__ import annotations

import torch
from torch import Tensor


def scan_order(columns: Tensor) -> Tensor:
    """Four directions (..., 4, length) from `columns` (..., length), the tokens in column order.

    Rows forward, rows reversed, columns forward, columns reversed (sheet 1.4).
    """
    rows = torch.arange(columns.shape[-1], device=columns.device).expand_as(columns)
    return torch.stack([rows, rows.flip(-1), columns, columns.flip(-1)], dim=-2)


def column_order(side: int, class_token: bool) -> Tensor:
    """Tokens of a grid column by column, the class token staying in the middle, (length,)."""
    order = torch.arange(side * side).view(side, side).T.reshape(-1)
    if not class_token:
        return order
    middle = side * side // 2
    order = order + (order >= middle).long()
    return torch.cat([order[:middle], torch.tensor([middle], device=order.device), order[middle:]])


def column_order_of(patches: Tensor, side: int) -> Tensor:
    """Column order of some of the patches of a grid: `patches` (batch, length) are their raster indices, ascending."""
    return torch.argsort(patches % side * side + patches // side, dim=1)


def cluster_order(side: int, cluster_side: int, order: str, seed: int) -> Tensor:
    """Raster indices of all patches (patches,), cluster after cluster, rows first inside a cluster (sheet 1.7).

    Clusters come by rows, by columns, or in one permutation fixed by `seed`.
    """
    clusters = side // cluster_side
    patches = torch.arange(side * side).view(clusters, cluster_side, clusters, cluster_side).transpose(1, 2)
    if order == "column":
        patches = patches.transpose(0, 1)
    patches = patches.reshape(clusters**2, cluster_side**2)
    if order == "random":
        generator = torch.Generator().manual_seed(seed)
        permutation = torch.randperm(clusters**2, generator=generator, device="cpu").to(patches.device)
        patches = patches[permutation]
    return patches.reshape(-1)


def clusters_so_far(length: int, cluster: int) -> Tensor:
    """Who sees whom, (length, length): True where token s (column) lies in the cluster of token t (row) or before."""
    at = torch.arange(length) // cluster
    return at[:, None] >= at[None, :]


def spread(x: Tensor, order: Tensor) -> Tensor:
    """Tokens (batch, length, channels) laid out as each direction meets them, (batch, length, directions * channels).

    `order` (batch, directions, length) differs from sample to sample. One gather a direction keeps the backward pass
    free of colliding additions, hence reproducible on GPUs.
    """
    channels = x.shape[2]
    visits = [x.gather(1, one[:, :, None].expand(-1, -1, channels)) for one in order.unbind(1)]
    return torch.cat(visits, dim=2)


def gather_back(y: Tensor, order: Tensor) -> Tensor:
    """The inverse of `spread` for (batch, length, directions * channels): every token's values back at its place."""
    parts = y.chunk(order.shape[1], dim=2)
    inverse = torch.argsort(order, dim=2).unbind(1)
    back = [part.gather(1, one[:, :, None].expand_as(part)) for part, one in zip(parts, inverse, strict=True)]
    return torch.cat(back, dim=2)
