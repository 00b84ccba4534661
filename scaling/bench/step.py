"""`armscale bench step`: whole train steps on resident data, by scan backend, eager and compiled, against a baseline.

The share of the scan is measured, not modelled: beside every whole step the same rounds time a forward and a backward
of the operator alone, with the backend of that contender, on the tensors that reach the scan of the last block; times
the number of scans in the model (twice the forward under activation checkpointing), it is divided by that round's step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from models.flops import tokens_per_image, train_flops_per_image
from models.scan import available_backends
from models.scan.inputs import ScanInputs
from scaling.bench import ceilings
from scaling.bench import scan as scan_bench
from scaling.bench.memory import peak_bytes
from scaling.bench.official import OfficialLoop
from scaling.bench.timing import Timing, first_line, interleave, ratio, summarize
from scaling.bench.trainer import CLASSES, StepCase, Trainer, scan_calls
from scaling.config import RunConfig
from scaling.cost import utilisation
from scaling.devices import dense_peak
from scaling.environment import Rank, device_name
from scaling.errors import UserError

OFFICIAL = "official-loop"
BASELINES = (OFFICIAL,)
MODES = ("eager", "compiled")


def step_bench(
    case: StepCase,
    device: torch.device,
    backends: Sequence[str] = (),
    modes: Sequence[str] = ("eager",),
    baselines: Sequence[str] = (OFFICIAL,),
    rounds: int = 5,
) -> dict[str, Any]:
    """Seconds a step of every backend in every mode, images per second, MFU, peak bytes, share of the scan and ratios.

    What cannot run (no memory, a kernel that does not compile) is a row with its error; the others go on.
    """
    torch.compiler.reset()  # shapes of an earlier case would make this one's dynamic
    config = case.config()
    backends = _usable(backends, device, scans=case.encoder == "mamba")
    for given, field, valid in ((modes, "--mode", MODES), (baselines, "--baseline", BASELINES)):
        for name in given:
            if name not in valid:
                raise UserError(field, name, valid)
    built: dict[str, Contender] = {}
    failed: list[dict[str, Any]] = []
    for contender in _contenders(case, device, backends, modes, baselines):
        try:
            contender.build(device)
            built[contender.name] = contender
        except Exception as error:  # noqa: BLE001 - what a compiler raises has no common class
            failed.append({"name": contender.name, "error": first_line(error)})
    inputs, calls = scan_calls(config, device) if built else (None, 0)
    wait = ceilings.synchronizer(device)
    runs: dict[str, Callable[[], object]] = {name: contender.run for name, contender in built.items()}
    parts = _scan_parts(inputs, {contender.backend for contender in built.values()}, case.checkpointing)
    timings = interleave(runs | parts, rounds, wait) if built else {}
    return {
        "bench": "step",
        "case": asdict(case),
        "device": device_name(device),
        "devices": 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dense_peak": dense_peak(device_name(device), case.precision),
        **facts(config),
        "scan_share_is": "forward and backward of the scan alone on the step's own tensors, times the model's scans",
        "results": [_row(contender, config, device, timings, calls) for contender in built.values()] + failed,
    }


def facts(config: RunConfig) -> dict[str, Any]:
    """What an image costs in this config."""
    encoder, objective = config.encoder_config(), config.objective_config(CLASSES)
    matmul, scan = train_flops_per_image(encoder, objective)
    return {
        "image_size": encoder.image_size,
        "tokens_per_image": tokens_per_image(encoder, objective),
        "flops_per_image": matmul,
        "scan_flops_per_image": scan,
    }


class Contender:
    """One whole step under a name; `backend` is that of its scans, empty where the model has none."""

    def __init__(self, name: str, backend: str, make: Callable[[], Trainer | OfficialLoop]) -> None:
        self.name, self.backend, self.make = name, backend, make
        self.peak = 0
        self.run: Callable[[], object]

    def build(self, device: torch.device) -> None:
        """Makes the model and takes the first steps, which compile, make the moments and reach the peak of memory."""

        def start() -> None:
            trainer = self.make()
            self.run = trainer.step
            if isinstance(trainer, OfficialLoop):
                self.backend = {"reference": "reference", "mamba-ssm": "cuda"}.get(trainer.kernels, self.backend)
                trainer.step()
                trainer.step()
            else:
                trainer.warm_up()

        self.peak = peak_bytes(start, device)


def _contenders(
    case: StepCase, device: torch.device, backends: Sequence[str], modes: Sequence[str], baselines: Sequence[str]
) -> list[Contender]:
    found = []
    for mode in modes:
        config = case.config(compile=mode == "compiled")
        for backend in backends:
            if mode == "compiled" and backend == "cuda" and len(backends) > 1:
                continue  # the libraries' bindings break the graph, and in one process that costs the others too
            name = f"{backend} {mode}" if case.encoder == "mamba" else mode
            make = _maker(config, backend)
            found.append(Contender(name, backend if case.encoder == "mamba" else "", make))
    config = case.config()
    found += [Contender(f"baseline {name}", "", lambda: OfficialLoop(config, device)) for name in baselines]
    return found


def _maker(config: RunConfig, backend: str) -> Callable[[], Trainer]:
    return lambda: Trainer(config, Rank(), backend)


def _usable(backends: Sequence[str], device: torch.device, *, scans: bool) -> Sequence[str]:
    """The backends asked for; all that are meant for the device if none is."""
    if not scans:
        return ["auto"]
    usable = {row.name for row in available_backends() if row.usable}
    for name in backends:
        if name not in usable | {"auto"}:
            raise UserError("--backend", name, sorted(usable))
    place = {"cpu": ("numba", "torch"), "cuda": ("triton", "cuda")}[device.type]
    return backends or [name for name in place if name in usable]


def _scan_parts(inputs: ScanInputs | None, backends: set[str], checkpointing: bool) -> dict[str, Callable[[], object]]:
    """The operator alone, by backend."""
    if inputs is None:
        return {}

    def part(backend: str) -> Callable[[], object]:
        scan = scan_bench.backend(backend)
        once = scan_bench.step(scan, inputs)
        again = scan_bench.forward(scan, inputs)
        return (lambda: (again(), once())) if checkpointing else once

    return {f"scan {backend}": part(backend) for backend in sorted(backends)}


def _utilisation(flops: float, rate: float, device: torch.device, precision: str) -> dict[str, Any]:
    """MFU; one above 100 % is refused, and the row says why."""
    try:
        return {"mfu": utilisation(flops, rate, device_name(device), precision)}
    except UserError as error:
        return {"mfu": None, "mfu_refused": str(error)}


def _row(
    contender: Contender, config: RunConfig, device: torch.device, timings: dict[str, Timing], calls: int
) -> dict[str, Any]:
    step, scan = timings[contender.name], timings.get(f"scan {contender.backend}")
    rate = config.train.global_batch / step.median
    flops = facts(config)["flops_per_image"]
    share = None
    if scan is not None and calls:
        share = summarize([calls * a / b for a, b in zip(scan.rounds, step.rounds, strict=True)])
    others = {name: timing for name, timing in timings.items() if name.startswith("baseline ")}
    return {
        "name": contender.name,
        "step": step.row(),
        "images_per_second": rate,
        **_utilisation(flops, rate, device, config.precision),
        "peak_memory_bytes": contender.peak,
        "scan_share": None if share is None else share.row(),
        "times_faster_than": {name: ratio(timing, step).row() for name, timing in others.items()},
    }
