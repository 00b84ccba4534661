"""Which implementations of the scan and the convolution exist, which this machine can use, which `auto` takes."""

from __future__ import annotations

import importlib
import os
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch

from scaling.errors import UserError

MODULES = {
    "selective_scan": {
        "triton": "models.scan.triton_scan",
        "cuda": "models.scan.cuda_scan",
        "numba": "models.scan.numba_scan",
        "torch": "models.scan.torch_scan",
        "reference": "models.scan.reference",
    },
    "causal_conv1d": {
        "triton": "models.scan.triton_conv",
        "cuda": "models.scan.cuda_conv",
        "numba": "models.scan.numba_conv",
        "torch": "models.scan.torch_conv",
    },
}
"""operator -> backend -> its module, fastest first: `auto` takes the first that fits, `torch` at the latest."""


class Needs(NamedTuple):
    """What a backend in float32 needs; `torch` and `reference` need nothing and take any device and precision."""

    device: str
    packages: dict[str, str]  # operator -> Python package
    extra: str  # of our distribution, which installs the packages


NEEDS = {
    "triton": Needs("cuda", {"selective_scan": "triton", "causal_conv1d": "triton"}, "triton"),
    "cuda": Needs("cuda", {"selective_scan": "mamba_ssm", "causal_conv1d": "causal_conv1d"}, "cuda"),
    "numba": Needs("cpu", {"selective_scan": "numba", "causal_conv1d": "numba"}, "cpu"),
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton then runs its kernels on CPU tensors, for tests: by name only, as it takes seconds."""


class Backend(NamedTuple):
    name: str
    usable: bool
    reason: str  # one line: where it runs, or why it cannot


def device_of(name: str) -> str:
    return "cpu" if name == "triton" and INTERPRETED else NEEDS[name].device


@cache
def obstacle(operator: str, name: str) -> str:
    """Why this machine cannot use the backend at all; empty when it can."""
    if name not in NEEDS:
        return ""
    _, packages, extra = NEEDS[name]
    package = packages[operator]
    if device_of(name) == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if find_spec(package) is None:
        return f"{package} is not installed: pip install 'armscale[{extra}]'"
    try:
        load(operator, name)
    except Exception as error:  # noqa: BLE001 - a build for another torch or driver may raise anything
        message = (str(error).splitlines() or [""])[0]
        return f"{package} is installed but does not import: {type(error).__name__}: {message}"
    return ""


def by_name_only() -> tuple[str, ...]:
    """What `auto` never takes."""
    return ("reference", "triton") if INTERPRETED else ("reference",)


def available_backends(operator: str = "selective_scan") -> list[Backend]:
    """Every backend of "selective_scan" or "causal_conv1d", in the order in which `auto` tries them."""
    rows = []
    for name in MODULES[operator]:
        problem = obstacle(operator, name)
        place = f"on {device_of(name)} in float32" if name in NEEDS else "on any device in float32 and float64"
        by_name = "; by name only" if name in by_name_only() else ""
        rows.append(Backend(name, not problem, problem or place + by_name))
    return rows


@torch.compiler.assume_constant_result
def choose(operator: str, backend: str, device: str, accumulator: torch.dtype) -> str:
    """The backend for tensors on a type of device with a state of this precision; UserError if it cannot be had."""
    return _choose(operator, backend, device, accumulator)


@cache
def _choose(operator: str, backend: str, device: str, accumulator: torch.dtype) -> str:
    def misfit(name: str) -> str:
        if name in NEEDS and (device != device_of(name) or accumulator != torch.float32):
            return f"it runs on {device_of(name)} in float32, not on {device} in {accumulator}"
        return obstacle(operator, name)

    names = MODULES[operator]
    if backend == "auto":
        return next(name for name in names if name not in by_name_only() and not misfit(name))
    fitting = ["auto", *(name for name in names if not misfit(name))]
    if backend not in names:
        raise UserError(f"{operator} backend", backend, fitting)
    if misfit(backend):
        raise UserError(f"{operator} backend", backend, fitting, why=misfit(backend))
    return backend


@cache
def load(operator: str, name: str) -> ModuleType:
    return importlib.import_module(MODULES[operator][name])
