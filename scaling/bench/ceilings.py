"""What this device can do at most, measured here and now: copying memory, multiplying matrices, exponentials."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch


@dataclass(frozen=True)
class Ceilings:
    bytes_per_second: float  # of a copy much larger than the caches, read and written bytes together
    flops_per_second: float  # of a float32 matrix product
    exponentials_per_second: float  # of torch.exp on numbers in the cache; on a GPU with Triton, in registers


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Waits until the device has finished what it was given."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def measure(device: torch.device) -> Ceilings:
    """Best of several tries each, in about a second, with the threads that torch may use."""
    wait = synchronizer(device)

    def best(run: Callable[[], object], tries: int = 8) -> float:
        run()
        seconds = []
        for _ in range(tries):
            wait()
            start = time.perf_counter()
            run()
            wait()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    large = 1 << (24 if device.type == "cpu" else 28)
    source, target = torch.ones(large, device=device), torch.empty(large, device=device)
    copied = 2 * 4 * large / best(lambda: target.copy_(source))
    side = 1024 if device.type == "cpu" else 8192
    a, b = torch.ones(side, side, device=device), torch.ones(side, side, device=device)
    multiplied = 2 * side**3 / best(lambda: torch.mm(a, b))
    if device.type == "cuda" and find_spec("triton") is not None:
        from scaling.bench.exponent_unit import EXPONENTIALS, exponentials_in_registers

        programs = 32 * torch.cuda.get_device_properties(device).multi_processor_count
        return Ceilings(
            copied, multiplied, programs * EXPONENTIALS / best(lambda: exponentials_in_registers(programs, device))
        )
    few = 1 << (14 if device.type == "cpu" else 20)
    numbers, powers = torch.linspace(-4, 0, few, device=device), torch.empty(few, device=device)

    def exponentials() -> None:
        for _ in range(64):
            torch.exp(numbers, out=powers)

    return Ceilings(copied, multiplied, 64 * few / best(exponentials))
