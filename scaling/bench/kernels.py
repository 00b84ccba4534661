"""The scan and the convolution of one mixer against mamba-ssm's and causal-conv1d's kernels, in microseconds.

On a GPU each contender is captured once and replayed as a CUDA graph, so that the host's launches and autograd's
bookkeeping are in nobody's time. The libraries are called on tensors laid out for them beforehand (channels before
length, each direction in its own order, one call a direction as the official code makes); what moving a model's tokens
there and back costs is in the rows `with layout`. With four directions every contender gates each of them, as the
official code does; our model gates their mean, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from models.scan import available_backends, causal_conv1d
from models.scan.cuda_order import reorder
from models.scan.inputs import ScanInputs
from scaling.bench import ceilings, scan
from scaling.bench.scan import Case
from scaling.bench.timing import first_line, interleave, ratio

BATCHES, WIDTHS = (32, 256), (768, 1024, 1536)
SHAPES = ((128, 1), (197, 1), (197, 4))  # (length, directions): pretraining, and finetuning with one and four
Run = Callable[[], object]
Pair = tuple[Run, Run]
"""The forward, and the forward with the backward."""


def time_kernels(
    device: torch.device,
    batches: Sequence[int] = BATCHES,
    widths: Sequence[int] = WIDTHS,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rounds: int = 5,
) -> Iterator[dict[str, Any]]:
    """One row a case and operator, the tokens in bfloat16 on a GPU; first a row with the device's ceilings."""
    limits = ceilings.measure(device)
    yield {"ceilings": asdict(limits)}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for length, directions in shapes:
        for width in widths:
            for batch in batches:
                case = Case(batch, length, width, directions=directions)
                for operator, make in {"selective_scan": _scans, "causal_conv1d": _convs}.items():
                    try:
                        results = _time(operator, make(case, device, dtype), case, device, dtype, limits, rounds)
                    except Exception as error:  # noqa: BLE001 - what a compiler raises has no common class
                        results = [{"error": first_line(error)}]
                    yield {"operator": operator, "dtype": str(dtype)[6:], "case": asdict(case), "results": results}
                    if device.type == "cuda":
                        torch.cuda.empty_cache()


def _time(
    operator: str,
    contenders: dict[str, Pair],
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    limits: ceilings.Ceilings,
    rounds: int,
) -> list[dict[str, Any]]:
    wait = ceilings.synchronizer(device)
    runs = [{name: graphed(pair[which], device) for name, pair in contenders.items()} for which in (0, 1)]
    timings = [interleave({name: run for name, (run, _) in named.items()}, rounds, wait) for named in runs]
    rows = []
    for name in contenders:
        row: dict[str, Any] = {"name": name, "graph": all(named[name][1] for named in runs)}
        for which, label in enumerate(("forward", "forward_backward")):
            timing = timings[which][name]
            row[label] = {"microseconds": timing.median * 1e6, **timing.row()}
            least = _least(operator, case, dtype.itemsize, backward=bool(which))
            row[label] |= {
                "share_of_memory_ceiling": least[0] / timing.median / limits.bytes_per_second,
                "share_of_exponential_ceiling": least[1] / timing.median / limits.exponentials_per_second,
            }
            row[label]["times_faster_than"] = {
                other: ratio(slower, timing).row()["median"]
                for other, slower in timings[which].items()
                if other in ("mamba-ssm", "causal-conv1d")
            }
        rows.append(row)
    return rows


def _least(operator: str, case: Case, element: int, *, backward: bool) -> tuple[float, float]:
    """(bytes, exponentials) that the operator cannot do without: each tensor once; an exponential a state step of a
    scan's forward and another in its backward, which keeps no decays."""
    tokens = case.batch * case.length * case.channels
    if operator == "causal_conv1d":  # x and y; then x, dy and dx. One sigmoid an output.
        outputs = tokens * case.directions
        return element * (tokens + outputs + backward * (2 * tokens + outputs)), outputs * (1 + backward)
    matrices = case.batch * case.length * case.state * case.directions
    forward = element * (4 * tokens * case.directions + 2 * matrices)
    return (case.bytes_moved(element), 2 * case.steps) if backward else (forward, case.steps)


def graphed(run: Run, device: torch.device) -> tuple[Run, bool]:
    """`run` as a CUDA graph, and True; on a CPU, or where it cannot be captured, as it is, and False."""
    if device.type != "cuda":
        return run, False
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize(device)
        return run, False
    return graph.replay, True


def _usable(operator: str, device: torch.device) -> list[str]:
    wanted = {"cpu": ("numba", "torch"), "cuda": ("triton",)}[device.type]
    usable = {row.name for row in available_backends(operator) if row.usable}
    return [name for name in wanted if name in usable]


def _scans(case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, Pair]:
    inputs = scan.make_inputs(case, device, dtype)
    found = {
        name: (scan.forward(scan.backend(name), inputs), scan.step(scan.backend(name), inputs))
        for name in _usable("selective_scan", device)
    }
    if device.type == "cuda" and find_spec("mamba_ssm"):
        found["mamba-ssm"] = mamba_ssm_scan(inputs, case)
        adapter = scan.backend("cuda")
        found["mamba-ssm with layout"] = (scan.forward(adapter, inputs), scan.step(adapter, inputs))
    return found


def mamba_ssm_scan(inputs: ScanInputs, case: Case) -> Pair:
    """selective_scan_fn once a direction, on channels-first tensors in that direction's order."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    ordered = {
        name: reorder(value, inputs.order, case.directions).transpose(1, 2).chunk(case.directions, dim=1)
        for name, value in {"u": inputs.u, "delta": inputs.delta, "z": inputs.z}.items()
        if value is not None
    }
    matrices = {"B": inputs.B, "C": inputs.C}
    calls = []
    for direction in range(case.directions):
        visits = slice(None) if inputs.order is None else inputs.order[direction]
        arguments = [ordered["u"][direction].contiguous(), ordered["delta"][direction].contiguous()]
        arguments.append(inputs.A.chunk(case.directions)[direction].contiguous())
        arguments += [matrix[:, visits, direction].transpose(1, 2).contiguous() for matrix in matrices.values()]
        assert inputs.D is not None and inputs.delta_bias is not None
        arguments += [inputs.D.chunk(case.directions)[direction].contiguous(), ordered["z"][direction].contiguous()]
        arguments.append(inputs.delta_bias.chunk(case.directions)[direction].contiguous())
        calls.append([value.detach().requires_grad_() for value in arguments])
    return _library_pair(lambda arguments: selective_scan_fn(*arguments, True), calls)


def _convs(case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, Pair]:
    order, outputs = scan.make_inputs(case, device, dtype).order, case.channels * case.directions
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(case.batch, case.length, case.channels, generator=generator, device=device).to(dtype)
    weight, bias = torch.randn(outputs, 4, device=device), torch.randn(outputs, device=device)

    def pair(name: str) -> Pair:
        leaves = [[value.detach().requires_grad_() for value in (x, weight, bias)]]
        return _library_pair(lambda given: causal_conv1d(given[0], given[1], given[2], "silu", name, order), leaves)

    found = {name: pair(name) for name in _usable("causal_conv1d", device)}
    if device.type == "cuda" and find_spec("causal_conv1d"):
        from causal_conv1d import causal_conv1d_fn

        calls = []
        for direction in range(case.directions):
            visits = slice(None) if order is None else order[direction]
            own = [part.chunk(case.directions)[direction].to(dtype).contiguous() for part in (weight, bias)]
            calls.append([value.detach().requires_grad_() for value in (x[:, visits].mT.contiguous(), *own)])
        found["causal-conv1d"] = _library_pair(lambda given: causal_conv1d_fn(*given, activation="silu"), calls)
        found["causal-conv1d with layout"] = pair("cuda")
    return found


def _library_pair(call: Callable[[list[Tensor]], Tensor], calls: list[list[Tensor]]) -> Pair:
    """Every call of a list in a row: without gradients, and with the gradients of all its arguments."""
    with torch.no_grad():
        ones = [torch.ones_like(call(arguments)) for arguments in calls]

    def forward() -> None:
        with torch.no_grad():
            for arguments in calls:
                call(arguments)

    def step() -> None:
        for arguments, dout in zip(calls, ones, strict=True):
            torch.autograd.grad(call(arguments), arguments, dout)

    return forward, step
