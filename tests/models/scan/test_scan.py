"""Every backend of the scan that runs on a CPU against the definition in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from models.scan import selective_scan
from tests.models.scan.cases import assert_close, cast, compare, drawn, parameters, run, scan_inputs

BACKENDS = parameters("selective_scan", "torch", "numba")


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=drawn(widths=[1, 5, 16, 48, 136]))
@settings(max_examples=25, deadline=None)
def test_agrees_with_the_definition(backend: str, case: dict[str, Any]) -> None:
    compare(scan_inputs(**case), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=drawn(widths=[5, 32]))
@settings(max_examples=8, deadline=None)
def test_tokens_in_bfloat16(backend: str, case: dict[str, Any]) -> None:
    compare(scan_inputs(**case), backend, tokens=torch.bfloat16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 128, 197])
def test_lengths_of_the_paper(backend: str, length: int) -> None:
    compare(scan_inputs(2, length, 32), backend)


def test_the_definition_on_one_channel_and_state() -> None:
    """A closed form: with constant inputs the state is a geometric series."""
    length, a, dt, u, b, c, skip = 12, -0.7, 0.3, 1.5, 0.4, 2.0, 0.25
    tokens = torch.ones(1, length, 1, dtype=torch.float64)
    out = selective_scan(
        tokens * u,
        tokens * math.log(math.expm1(dt) / math.e),  # with a bias of 1, softplus gives dt
        torch.tensor([[a]], dtype=torch.float64),
        tokens * b,
        tokens * c,
        torch.tensor([skip], dtype=torch.float64),
        None,
        torch.ones(1, dtype=torch.float64),
        True,
        backend="reference",
    )
    decay = math.exp(dt * a)
    expected = [c * dt * b * u * (1 - decay ** (t + 1)) / (1 - decay) + skip * u for t in range(length)]
    torch.testing.assert_close(out.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_gradcheck(optional: bool, ordered: bool) -> None:
    """Against finite differences in float64."""
    inputs = scan_inputs(2, 5, 4, groups=2, state=3, optional=optional, ordered=ordered)
    tensors = [x.requires_grad_() for x in inputs[:8] if x is not None]

    def scan(*values: torch.Tensor) -> torch.Tensor:
        rest = iter(values)
        filled = [None if x is None else next(rest) for x in inputs[:8]]
        return selective_scan(*filled, True, "torch", inputs.order)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(scan, tensors)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_softplus_at_both_ends(backend: str) -> None:
    inputs = scan_inputs(1, 4, 16)
    extreme = torch.tensor([-50.0, 50.0, -50.0, 50.0]).double().view(1, 4, 1).expand(1, 4, 16)
    compare(inputs._replace(delta=extreme, delta_bias=None), backend)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_order_means_gathering_and_scattering(backend: str) -> None:
    """Tokens in another order with `order`, against tokens moved by hand; four directions as four groups."""
    inputs = cast(scan_inputs(2, 9, 4 * 16, groups=4, ordered=True), torch.float32)
    assert inputs.order is not None
    u, delta, _, B, C, _, z = inputs[:7]
    parts = []
    for group, order in enumerate(inputs.order):
        own = slice(16 * group, 16 * (group + 1))
        moved = selective_scan(
            u[:, order, own],
            delta[:, order, own],
            inputs.A[own],
            B[:, order, group],
            C[:, order, group],
            inputs.D[own],  # type: ignore[index]
            z[:, order, own],  # type: ignore[index]
            inputs.delta_bias[own],  # type: ignore[index]
            True,
            backend,
        )
        parts.append(moved[:, order.argsort()])
    out = selective_scan(*inputs[:8], True, backend, inputs.order)
    torch.testing.assert_close(out, torch.cat(parts, dim=2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_are_views(backend: str) -> None:
    """Halves of a projection, transposed and expanded tensors give what contiguous ones give."""
    inputs = cast(scan_inputs(2, 7, 32), torch.float32)
    xz = torch.cat([inputs.u, inputs.z], dim=2)  # type: ignore[list-item]
    u, z = xz.chunk(2, dim=2)
    views = inputs._replace(
        u=u,
        z=z,
        delta=inputs.delta.transpose(1, 2).contiguous().transpose(1, 2),
        A=inputs.A[0].expand(32, 16),
        B=inputs.B.flip(1).contiguous().flip(1),
    )
    dout = torch.ones(()).expand(inputs.u.shape)
    for actual, expected in zip(run(views, backend, dout), run(inputs, backend, dout.clone()), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_change_little(backend: str) -> None:
    """Three threads give the outputs of one; sums over the batch may be rounded in another order."""
    inputs = cast(scan_inputs(5, 10, 160), torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(run(inputs, backend, torch.ones(inputs.u.shape)))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    (one, one_gradients), (three, three_gradients) = found
    assert torch.equal(one, three)
    for name, a, b in zip(one_gradients._fields, one_gradients, three_gradients, strict=True):
        assert a is not None and b is not None
        assert_close(b, a, 1e-6, name)
