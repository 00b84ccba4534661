"""Inputs of the scan and the convolution, drawn for tests, and the comparison of a backend with the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from models.scan import available_backends, selective_scan
from models.scan.inputs import ScanGradients, ScanInputs


def parameters(operator: str, *names: str) -> list[Any]:
    """The backends for pytest to run over; one that this machine cannot use is skipped with the reason."""
    found = {row.name: row for row in available_backends(operator)}
    return [
        pytest.param(name, marks=pytest.mark.skipif(not found[name].usable, reason=found[name].reason))
        for name in names
    ]


def scan_inputs(
    batch: int,
    length: int,
    channels: int,
    groups: int = 1,
    state: int = 16,
    *,
    optional: bool = True,
    softplus: bool = True,
    ordered: bool = False,
    large: bool = False,
    seed: int = 0,
) -> ScanInputs:
    """Normal inputs in float64, representable in float32. `large` has steps up to 50 before softplus and A down to -64,
    so that a state may be forgotten within one token; else A is -1 .. -state as Mamba starts."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    delta = normal(batch, length, channels)
    delta = delta * 25 if large else delta - 2
    A = -torch.arange(1.0, state + 1).double().expand(channels, state) * (4 if large else 1)
    bias = torch.randn(channels, generator=torch.Generator().manual_seed(seed + 1)).double() * 0.1
    if not softplus:
        # Steps are positive, as softplus makes them: a negative one lets the state grow beyond fp32, in any backend.
        delta, bias = delta.abs() * 0.1, bias.abs()
    return ScanInputs(
        u=normal(batch, length, channels),
        delta=delta.clamp(-50, 50),
        A=A.contiguous(),
        B=normal(batch, length, groups, state),
        C=normal(batch, length, groups, state),
        D=normal(channels) if optional else None,
        z=normal(batch, length, channels) * (10 if large else 1) if optional else None,
        delta_bias=bias if optional else None,
        delta_softplus=softplus,
        order=torch.stack([torch.randperm(length, generator=generator) for _ in range(groups)]) if ordered else None,
    )


def drawn(widths: list[int], lengths: int = 40) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of `scan_inputs`; `widths` are channels of a group."""
    return st.builds(
        lambda width, groups, **rest: {"channels": width * groups, "groups": groups, **rest},
        width=st.sampled_from(widths),
        groups=st.sampled_from([1, 2, 4]),
        batch=st.integers(1, 3),
        length=st.integers(1, lengths),
        state=st.sampled_from([1, 3, 16]),
        optional=st.booleans(),
        softplus=st.booleans(),
        ordered=st.booleans(),
        large=st.booleans(),
        seed=st.integers(0, 2**16),
    )


def run(inputs: ScanInputs, backend: str, dout: Tensor) -> tuple[Tensor, ScanGradients]:
    """The output and the gradients of sum(output * dout)."""
    leaves = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in inputs[:8]]
    out = selective_scan(*leaves, inputs.delta_softplus, backend, inputs.order)
    given = [x for x in leaves if x is not None]
    found = iter(torch.autograd.grad(out, given, dout.to(out.dtype)))
    return out.detach(), ScanGradients(*(None if x is None else next(found) for x in leaves))


def cast(inputs: ScanInputs, dtype: torch.dtype, tokens: torch.dtype | None = None) -> ScanInputs:
    """A, D and delta_bias in `dtype`; u, delta, B, C and z in `tokens` (as under autocast), or in `dtype` too."""
    wanted = dict.fromkeys(("u", "delta", "B", "C", "z"), tokens or dtype) | dict.fromkeys(
        ("A", "D", "delta_bias"), dtype
    )
    return inputs._replace(
        **{name: getattr(inputs, name).to(to) for name, to in wanted.items() if getattr(inputs, name) is not None}
    )


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """The greatest error, relative to the greatest value; catches NaN and infinity."""
    assert torch.isfinite(actual).all(), f"{name} is not finite"
    scale = expected.abs().max().item()
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= tolerance * max(scale, 1e-3), f"{name}: error {error:.3e} at scale {scale:.3e}"


def compare(inputs: ScanInputs, backend: str, tokens: torch.dtype = torch.float32) -> None:
    """The backend in float32 (tokens in `tokens`) against the definition in float64 on the very same values.

    Outputs to 1e-5 and all gradients to 1e-4, plus the rounding of a result that is itself given in `tokens`; twice
    that for z's from `triton`, a product with the output before the gate, which it keeps in `tokens` too.
    """
    given = cast(inputs, torch.float32, tokens)
    exact = cast(given, torch.float64)
    dout = torch.randn(given.u.shape, generator=torch.Generator().manual_seed(1)).to(tokens)
    out, gradients = run(given, backend, dout)
    expected, expected_gradients = run(exact, "reference", dout.double())
    rounding = torch.finfo(tokens).eps if tokens != torch.float32 else 0.0
    assert out.dtype == tokens
    assert_close(out, expected, 1e-5 + rounding, "output")
    for name, actual, wanted in zip(ScanGradients._fields, gradients, expected_gradients, strict=True):
        assert (actual is None) == (wanted is None), name
        if actual is not None and wanted is not None:
            assert actual.dtype == getattr(given, name).dtype
            roundings = (2 if (backend, name) == ("triton", "z") else 1) if actual.dtype == tokens else 0
            assert_close(actual, wanted, 1e-4 + roundings * rounding, f"gradient of {name}")
