"""`armscale bench scan`: the backends of the selective scan against each other and against named baselines."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from models.scan import available_backends, selective_scan
from models.scan import reference as definition
from models.scan.inputs import ScanInputs
from scaling.bench import ceilings, parallel_scan
from scaling.bench.timing import Timing, interleave, ratio
from scaling.errors import UserError

BASELINES: dict[str, Callable[[ScanInputs], Tensor]] = {
    "reference": definition.selective_scan,
    "parallel": parallel_scan.selective_scan,
}
FORWARD_FLOPS, BACKWARD_FLOPS = 7, 14
"""Operations a state and token that the definition needs, an exponential counted as one: forward delta A, exp, its
product with h, delta u B, their sum, and C h summed over states; backward two each for the adjoint of h, dB, dC, the
gradient of delta u, dA and ddelta, and one each for the two products that carry the adjoint back. Recomputed states are
the backend's own business and are not counted."""


@dataclass(frozen=True)
class Case:
    batch: int = 8
    length: int = 128
    channels: int = 768  # of one direction
    state: int = 16
    directions: int = 1  # groups, each in an order of its own

    @property
    def steps(self) -> int:
        """State steps of a forward: batch x length x channels x states x directions."""
        return self.batch * self.length * self.channels * self.state * self.directions

    def bytes_moved(self, element: int) -> int:
        """At least, by a forward and a backward: eleven tensors of tokens; B and C twice, and their gradients."""
        tokens = self.batch * self.length * self.channels * self.directions
        matrices = self.batch * self.length * self.state * self.directions
        return element * (11 * tokens + 6 * matrices)


def make_inputs(case: Case, device: torch.device, dtype: torch.dtype) -> ScanInputs:
    """As a freshly initialised mixer gives them: A = -1 .. -state, steps of 1e-3 to 1e-1."""
    generator = torch.Generator(device).manual_seed(0)
    tokens = (case.batch, case.length, case.channels * case.directions)
    matrices = (case.batch, case.length, case.directions, case.state)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    steps = torch.rand(tokens[2], generator=generator, device=device).mul(4.6).sub(6.9).exp()
    orders = None
    if case.directions > 1:
        drawn = [torch.randperm(case.length, generator=generator, device=device) for _ in range(case.directions)]
        orders = torch.stack(drawn)
    return ScanInputs(
        u=normal(*tokens),
        delta=normal(*tokens) * 0.1,
        A=-torch.arange(1.0, case.state + 1, device=device).repeat(tokens[2], 1),
        B=normal(*matrices),
        C=normal(*matrices),
        D=torch.ones(tokens[2], device=device),
        z=normal(*tokens),
        delta_bias=torch.log(torch.expm1(steps)),
        delta_softplus=True,
        order=orders,
    )


def step(scan: Callable[[ScanInputs], Tensor], inputs: ScanInputs) -> Callable[[], object]:
    """A forward and a backward with gradients of all inputs."""
    leaves: dict[str, Any] = {
        name: x.detach().requires_grad_()
        for name, x in inputs._asdict().items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    full, dout = inputs._replace(**leaves), torch.ones_like(inputs.u)
    return lambda: torch.autograd.grad(scan(full), list(leaves.values()), dout)


def forward(scan: Callable[[ScanInputs], Tensor], inputs: ScanInputs) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.no_grad():
            return scan(inputs)

    return run


def backend(name: str) -> Callable[[ScanInputs], Tensor]:
    return lambda inputs: selective_scan(*inputs[:8], inputs.delta_softplus, name, inputs.order)


def contenders(device: torch.device, backends: Sequence[str], baselines: Sequence[str]) -> dict[str, Any]:
    """Name -> scan, of the backends asked for (all usable ones on the device if none is) and the baselines."""
    place = {"cpu": ("numba", "torch"), "cuda": ("triton", "cuda", "torch")}[device.type]
    usable = {row.name for row in available_backends() if row.usable}
    for name in backends:
        if name not in usable:
            raise UserError("--backend", name, sorted(usable))
    for name in baselines:
        if name not in BASELINES:
            raise UserError("--baseline", name, sorted(BASELINES))
    chosen = backends or [name for name in place if name in usable]
    return {name: backend(name) for name in chosen} | {f"baseline {name}": BASELINES[name] for name in baselines}


def bench(
    case: Case, device: torch.device, dtype: torch.dtype, backends: Sequence[str], baselines: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Times a forward, and a forward with backward, of each contender; seconds and ratios as JSON."""
    scans = contenders(device, backends, baselines)
    if case.directions > 1 and "parallel" in baselines:
        raise UserError("--directions", case.directions, "1 with the baseline parallel")
    inputs, wait = make_inputs(case, device, dtype), ceilings.synchronizer(device)
    steps = interleave({name: step(scan, inputs) for name, scan in scans.items()}, rounds, wait)
    forwards = interleave({name: forward(scan, inputs) for name, scan in scans.items()}, rounds, wait)
    limits = ceilings.measure(device)
    return {
        "bench": "scan",
        "case": asdict(case),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ceilings": asdict(limits),
        "results": [_row(name, case, dtype, steps, forwards, limits) for name in scans],
    }


def _row(
    name: str,
    case: Case,
    dtype: torch.dtype,
    steps: dict[str, Timing],
    forwards: dict[str, Timing],
    limits: ceilings.Ceilings,
) -> dict[str, Any]:
    seconds = steps[name].median
    flops = case.steps * (FORWARD_FLOPS + BACKWARD_FLOPS)
    return {
        "name": name,
        "forward": forwards[name].row(),
        "forward_backward": steps[name].row(),
        "times_faster_than": {
            other: ratio(timing, steps[name]).row() for other, timing in steps.items() if other.startswith("baseline ")
        },
        "share_of_memory_ceiling": case.bytes_moved(dtype.itemsize) / seconds / limits.bytes_per_second,
        "share_of_flop_ceiling": flops / seconds / limits.flops_per_second,
        "share_of_exponential_ceiling": 2 * case.steps / seconds / limits.exponentials_per_second,
    }
