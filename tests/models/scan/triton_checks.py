"""Checks of the triton kernels on CPU tensors. Run as a process of its own with TRITON_INTERPRET=1, which Triton reads
when it is first imported: `python -m pytest tests/models/scan/triton_checks.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.scan import available_backends, selective_scan
from models.scan.inputs import ScanInputs
from models.scan.triton_sums import add_up
from tests.models.scan.cases import cast, compare, drawn, scan_inputs
from tests.models.scan.test_conv import check_convolution

KINDS = (torch.float32, torch.bfloat16, torch.float32)


@given(case=drawn(widths=[1, 5, 33], lengths=11))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_scan_agrees_with_the_definition(case: dict[str, Any]) -> None:
    compare(scan_inputs(**case), "triton")


@pytest.mark.parametrize("length", [1, 4, 5, 17])
@pytest.mark.parametrize("tokens", [torch.float32, torch.bfloat16])
def test_scan_at_the_ends_of_chunks(length: int, tokens: torch.dtype) -> None:
    compare(scan_inputs(1, length, 36), "triton", tokens)


def test_four_directions_in_one_launch() -> None:
    compare(scan_inputs(2, 9, 4 * 8, groups=4, ordered=True), "triton")


def test_softplus_at_both_ends() -> None:
    extreme = torch.tensor([-50.0, 50.0, 20.0, -16.0]).double().view(1, 4, 1).expand(1, 4, 16)
    compare(scan_inputs(1, 4, 16)._replace(delta=extreme, delta_bias=None), "triton")


def test_halves_of_a_projection() -> None:
    inputs = cast(scan_inputs(2, 5, 8), torch.float32)
    u, z = torch.cat([inputs.u, inputs.z], dim=2).chunk(2, dim=2)  # type: ignore[list-item]
    views = inputs._replace(u=u, z=z)
    out, expected = (selective_scan(*x[:8], True, "triton") for x in (views, inputs))
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 20),
    channels=st.sampled_from([3, 130]),
    groups=st.sampled_from([1, 4]),
    width=st.integers(1, 4),
    biased=st.booleans(),
    silu=st.booleans(),
    ordered=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_convolution_agrees_with_a_padded_one(**case: Any) -> None:
    check_convolution("triton", **case)


def test_slices_of_a_projection() -> None:
    """B and C where a mixer has them: beside each other and beside what the time step is made from."""
    inputs = cast(scan_inputs(2, 5, 8), torch.float32)
    together = torch.cat([inputs.B.new_zeros(2, 5, 1, 3), inputs.B, inputs.C], dim=3).requires_grad_()
    found = torch.autograd.grad(scan_sum(inputs, *together.split([3, 16, 16], dim=3)[1:]), together)[0]
    apart = [x.clone().requires_grad_() for x in (inputs.B, inputs.C)]
    expected = torch.cat(torch.autograd.grad(scan_sum(inputs, *apart), apart), dim=3)
    torch.testing.assert_close(found[..., 3:], expected, rtol=0, atol=0)


def scan_sum(inputs: ScanInputs, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    return selective_scan(*inputs._replace(B=B, C=C)[:8], True, "triton").sum()


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize(
    ("count", "rows", "widths"),
    [(1, 3, (16, 16)), (4, 70, (24,)), (37, 5, (16, 1, 1)), (40, 70, (4, 1)), (3, 8300, (16, 16))],
)
def test_parts_add_up(count: int, rows: int, widths: tuple[int, ...], by_row: bool) -> None:
    parts = torch.randn(count, rows, sum(widths), generator=torch.Generator().manual_seed(count))
    outputs = [torch.empty(rows, width, dtype=dtype) for width, dtype in zip(widths, KINDS, strict=False)]
    add_up(parts if by_row else parts.transpose(1, 2).contiguous(), outputs, by_row=by_row)
    for output, expected in zip(outputs, parts.double().sum(0).split(widths, dim=1), strict=True):
        torch.testing.assert_close(
            output, expected.to(output.dtype), rtol=1e-5 if output.dtype.itemsize > 2 else 8e-3, atol=1e-5
        )


def test_auto_leaves_the_interpreter_alone() -> None:
    inputs = cast(scan_inputs(1, 4, 16), torch.float32)
    names = {row.name: row for row in available_backends()}
    assert names["triton"].usable
    assert "by name only" in names["triton"].reason
    fast = "numba" if names["numba"].usable else "torch"
    assert torch.equal(selective_scan(*inputs[:8], True), selective_scan(*inputs[:8], True, fast))
