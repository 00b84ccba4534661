"""The mixer against the rules of the sheet (1.4), one direction at a time, and the SwiGLU against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import STATE
from models.initialize import generator_of
from models.mamba import Mixer, SwiGLU
from models.orders import column_order, column_order_of, scan_order
from tests.models.configs import encoder


def mixer(directions: int) -> Mixer:
    """A mixer in float64 whose directions all differ."""
    module = Mixer(encoder(width=16, scan_directions=directions)).double()
    generator = generator_of(0, "mixer")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.7, 0.7, generator=generator)
    return module


def one_direction(module: Mixer, k: int, x: Tensor, z: Tensor) -> Tensor:
    """Convolution, projections, recurrence and gate of direction k; x, z (batch, length, width) in its own order."""
    width, rank = x.shape[2], module.dt_rank
    rows = slice(k * width, (k + 1) * width)
    weight = module.conv.weight[rows][:, None]
    x = F.silu(F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight, module.conv.bias[rows], groups=width)).transpose(1, 2)
    projection = module.x_proj.weight.view(module.directions, -1, width)[k]
    low, B, C = (x @ projection.T).split([rank, STATE, STATE], dim=2)
    dt = F.softplus(low @ module.dt_proj.weight[rows].T + module.scan.dt_bias[rows])
    A = -module.scan.A_log[rows].exp()
    h = torch.zeros(len(x), width, STATE, dtype=x.dtype)
    steps = []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None] * x[:, t, :, None]
        steps.append((h * C[:, t, None]).sum(2) + module.scan.D[rows] * x[:, t])
    return torch.stack(steps, dim=1) * F.silu(z)


def columns(x: Tensor, side: int, class_token: bool) -> Tensor:
    """Swaps rows and columns of the grid; the class token stays in the middle. Its own inverse."""
    middle = side * side // 2
    token = x[:, middle : middle + class_token]
    patches = torch.cat([x[:, :middle], x[:, middle + class_token :]], dim=1)
    swapped = patches.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
    return torch.cat([swapped[:, :middle], token, swapped[:, middle:]], dim=1)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("side", [3, 4])
def test_four_directions(side: int, class_token: bool) -> None:
    """Odd grids too, where the official code mistakes a patch for the class token."""
    module = mixer(4)
    torch.manual_seed(0)
    u = torch.randn(2, side * side + class_token, 16, dtype=torch.float64)
    x, z = module.in_proj(u).chunk(2, dim=2)
    forwards = [one_direction(module, 0, x, z), one_direction(module, 1, x.flip(1), z.flip(1)).flip(1)]
    cx, cz = (columns(part, side, class_token) for part in (x, z))
    back = [one_direction(module, 2, cx, cz), one_direction(module, 3, cx.flip(1), cz.flip(1)).flip(1)]
    expected = module.out_proj((sum(forwards) + sum(columns(y, side, class_token) for y in back)) / 4)
    found = module(u, scan_order(column_order(side, class_token)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_one_direction() -> None:
    module = mixer(1)
    u = torch.randn(2, 7, 16, dtype=torch.float64)
    expected = module.out_proj(one_direction(module, 0, *module.in_proj(u).chunk(2, dim=2)))
    torch.testing.assert_close(module(u), expected, rtol=1e-9, atol=1e-10)


def test_an_order_for_each_sample() -> None:
    """Samples with their own orders come out, values and gradients, as each alone under its order."""
    module = mixer(4)
    torch.manual_seed(0)
    patches = torch.stack([torch.randperm(16)[:6].sort().values for _ in range(3)])
    order = scan_order(column_order_of(patches, side=4))
    u = torch.randn(3, 6, 16, dtype=torch.float64, requires_grad=True)
    together = module(u, order)
    apart = torch.cat([module(u[i : i + 1], order[i]) for i in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-10)
    weights = torch.randn_like(together)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), u)[0] for out in (together, apart))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_column_order_of_some_patches_is_that_of_all() -> None:
    """By hand on a 3 x 3 grid, of which patches 1, 3, 4, 6, 8 are visible: columns are (3, 6), (1, 4), (8)."""
    order = column_order_of(torch.tensor([[1, 3, 4, 6, 8]]), side=3)
    assert order.tolist() == [[1, 3, 0, 2, 4]]
    assert column_order(3, class_token=False).tolist() == column_order_of(torch.arange(9)[None], 3)[0].tolist()
    assert column_order(3, class_token=True).tolist() == [0, 3, 7, 1, 4, 5, 8, 2, 6, 9]


@pytest.mark.parametrize("row", [1, 8, 64])
def test_swiglu_with_and_without_filled_rows(row: int) -> None:
    """Sheet 1.2's formula with a hidden width of 21, values and gradients; nothing is added to the parameters."""
    module = SwiGLU(8, 21).double()
    module.rows = {"cpu": row}
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]
    parameters = dict(module.named_parameters())
    (w1, w2), (b1, b2) = parameters["w12.weight"].chunk(2), parameters["w12.bias"].chunk(2)
    gate = x @ w1.T + b1
    hidden = gate * torch.sigmoid(gate) * (x @ w2.T + b2)
    expected = hidden @ parameters["w3.weight"].T + parameters["w3.bias"]
    found = module(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(found)
    inputs = (x, *parameters.values())
    ours, theirs = (torch.autograd.grad((y * direction).sum(), inputs) for y in (found, expected))
    for name, one, other in zip(["x", *names], ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11, msg=name)
