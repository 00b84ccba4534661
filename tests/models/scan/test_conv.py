"""The causal convolution against PyTorch's own convolution in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.scan import causal_conv1d
from tests.models.scan.cases import assert_close, parameters

BACKENDS = parameters("causal_conv1d", "torch", "numba")


def by_padding(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, order: Tensor | None) -> Tensor:
    """F.conv1d with width - 1 zeros before the first token, a group at a time."""
    channels, outputs = x.shape[2], []
    for group in range(weight.shape[0] // channels):
        own = slice(group * channels, (group + 1) * channels)
        tokens = x if order is None else x[:, order[group]]
        padded = F.pad(tokens.transpose(1, 2), (weight.shape[1] - 1, 0))
        y = F.conv1d(padded, weight[own, None], None if bias is None else bias[own], groups=channels).transpose(1, 2)
        outputs.append(y if order is None else y[:, order[group].argsort()])
    y = torch.cat(outputs, dim=2)
    return F.silu(y) if silu else y


def check_convolution(
    backend: str,
    batch: int,
    length: int,
    channels: int,
    groups: int,
    width: int,
    biased: bool,
    silu: bool,
    ordered: bool,
    dtype: torch.dtype,
) -> None:
    """Output and gradients of random inputs against `by_padding` in float64."""
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(batch, length, channels, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(groups * channels, width, generator=generator).requires_grad_()
    bias = torch.randn(groups * channels, generator=generator).requires_grad_() if biased else None
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(groups)]) if ordered else None
    dout = torch.randn(batch, length, groups * channels, generator=generator).to(dtype)

    out = causal_conv1d(x, weight, bias, "silu" if silu else None, backend, order)
    exact = [None if v is None else v.detach().double().requires_grad_() for v in (x, weight, bias)]
    expected = by_padding(exact[0], exact[1], exact[2], silu, order)  # type: ignore[arg-type]
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 0.0
    assert out.dtype == dtype
    assert_close(out, expected, 1e-5 + rounding, "output")
    gradients = torch.autograd.grad(out, [v for v in (x, weight, bias) if v is not None], dout)
    wanted = torch.autograd.grad(expected, [v for v in exact if v is not None], dout.double())
    for name, actual, value in zip(("x", "weight", "bias"), gradients, wanted, strict=False):
        assert_close(actual, value, 1e-4 + (rounding if name == "x" else 0.0), f"gradient of {name}")


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 12),
    channels=st.sampled_from([1, 5, 16, 40]),
    groups=st.sampled_from([1, 4]),
    width=st.integers(1, 4),
    biased=st.booleans(),
    silu=st.booleans(),
    ordered=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=30, deadline=None)
def test_agrees_with_a_padded_convolution(backend: str, **case: Any) -> None:
    check_convolution(backend, **case)


def test_gradcheck() -> None:
    x, weight, bias = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in [(2, 5, 3), (6, 4), (6,)])
    order = torch.tensor([[2, 0, 1, 4, 3], [4, 3, 2, 1, 0]])
    assert torch.autograd.gradcheck(lambda *v: causal_conv1d(*v, "silu", "torch", order), (x, weight, bias))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": torch.zeros(2, 3)}, "x has shape"),
        ({"weight": torch.zeros(6, 4)}, "6 rows"),
        ({"bias": torch.zeros(5)}, "bias has shape"),
        ({"activation": "gelu"}, "gelu"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, object], named: str) -> None:
    arguments: dict[str, object] = {"x": torch.zeros(1, 2, 4), "weight": torch.zeros(4, 4), "bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=named):
        causal_conv1d(**(arguments | change))  # type: ignore[arg-type]
