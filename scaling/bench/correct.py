"""The scan and the convolution on this device against their definition in float64: outputs and every gradient.

The errors are relative to the greatest value, the bounds those of the tests on CPU: 1e-5 for outputs and 1e-4 for
gradients, and beside them one rounding where a result is itself given in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.scan import available_backends, causal_conv1d, reference, selective_scan
from models.scan.inputs import ScanGradients, ScanInputs
from scaling.bench.scan import Case, make_inputs
from scaling.bench.timing import first_line

OUTPUT_BOUND, GRADIENT_BOUND = 1e-5, 1e-4
CHANNELS = (96, 100)  # of a direction: whole blocks of the kernels, and a remainder
LENGTHS = (64, 128, 197, 256, 1024)


def check_kernels(
    device: torch.device, lengths: Sequence[int] = LENGTHS, channels: Sequence[int] = CHANNELS, batch: int = 2
) -> Iterator[dict[str, Any]]:
    """One row a backend and case: the error of each result and whether all are within the bounds."""
    for length in lengths:
        for width in channels:
            for directions in (1, 4):
                case = Case(batch, length, width, directions=directions)
                for dtype in (torch.float32, torch.bfloat16):
                    yield from _check("selective_scan", case, device, dtype)
                    yield from _check("causal_conv1d", case, device, dtype)


def _check(operator: str, case: Case, device: torch.device, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    make = {"selective_scan": _scan, "causal_conv1d": _conv}[operator]
    leaves, definition, by_backend = make(case, device, dtype)
    exact = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    dout: Tensor | None = None
    expected: dict[str, Tensor] = {}
    for name in _backends(operator, device):
        row = {"operator": operator, "backend": name, "length": case.length, "channels": case.channels}
        row |= {"directions": case.directions, "dtype": str(dtype).removeprefix("torch.")}
        try:
            out = by_backend(leaves, name)
            if dout is None:
                dout = torch.randn(out.shape, generator=torch.Generator(device).manual_seed(1), device=device).to(dtype)
                expected = _results(definition(exact), exact, dout.double())
            found = _results(out, leaves, dout)
        except Exception as error:  # noqa: BLE001 - what a compiler raises has no common class
            yield row | {"passed": False, "error": first_line(error)}
            continue
        errors = {what: _error(value, expected[what]) for what, value in found.items()}
        bounds = {what: _bound(what, value.dtype) for what, value in found.items()}
        passed = all(error is not None and error <= bounds[what] for what, error in errors.items())
        yield row | {"passed": passed, "errors": errors, "bounds": bounds}


def _backends(operator: str, device: torch.device) -> list[str]:
    """Those that run on the device here; where Triton is interpreted its kernels run on a CPU too."""
    rows = [row for row in available_backends(operator) if row.usable and row.name != "reference"]
    return [row.name for row in rows if row.name == "torch" or f"on {device.type}" in row.reason]


Make = tuple[dict[str, Tensor], Callable[[dict[str, Tensor]], Tensor], Callable[[dict[str, Tensor], str], Tensor]]


def _scan(case: Case, device: torch.device, dtype: torch.dtype) -> Make:
    inputs = make_inputs(case, device, dtype)
    leaves = {name: getattr(inputs, name).detach().requires_grad_() for name in ScanGradients._fields}

    def definition(exact: dict[str, Tensor]) -> Tensor:
        return reference.selective_scan(ScanInputs(**exact, delta_softplus=True, order=inputs.order))

    def by_backend(given: dict[str, Tensor], name: str) -> Tensor:
        return selective_scan(**given, delta_softplus=True, backend=name, order=inputs.order)

    return leaves, definition, by_backend


def _conv(case: Case, device: torch.device, dtype: torch.dtype) -> Make:
    order, outputs = make_inputs(case, device, dtype).order, case.channels * case.directions
    generator = torch.Generator(device).manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    leaves = {"x": normal(case.batch, case.length, case.channels).to(dtype), "weight": normal(outputs, 4)}
    leaves["bias"] = normal(outputs)

    def definition(exact: dict[str, Tensor]) -> Tensor:
        """Tokens of each direction in its order, padded on the left, convolved, and put back."""
        parts = []
        for direction in range(case.directions):
            own = slice(direction * case.channels, (direction + 1) * case.channels)
            visits = torch.arange(case.length, device=device) if order is None else order[direction]
            tokens = F.pad(exact["x"][:, visits].transpose(1, 2), (3, 0))
            y = F.conv1d(tokens, exact["weight"][own, None], exact["bias"][own], groups=case.channels)
            parts.append(y.transpose(1, 2)[:, visits.argsort()])
        return F.silu(torch.cat(parts, dim=2))

    def by_backend(given: dict[str, Tensor], name: str) -> Tensor:
        return causal_conv1d(**given, activation="silu", backend=name, order=order)

    return {name: x.requires_grad_() for name, x in leaves.items()}, definition, by_backend


def _results(out: Tensor, leaves: dict[str, Tensor], dout: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(out, list(leaves.values()), dout)
    return {"output": out.detach()} | {
        f"gradient of {name}": value for name, value in zip(leaves, gradients, strict=True)
    }


def _error(actual: Tensor, expected: Tensor) -> float | None:
    """The greatest error over the greatest value; None where the result is not finite."""
    error = ((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-3)).item()
    return error if error < float("inf") else None


def _bound(what: str, dtype: torch.dtype) -> float:
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    return rounding + (OUTPUT_BOUND if what == "output" else GRADIENT_BOUND)
