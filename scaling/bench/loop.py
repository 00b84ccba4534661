"""What the training loop itself costs: its steps against bare forward, backward and update on resident data.

A real run in a temporary folder logs every step; its stream hands out one resident batch, and before every step has
bare models take the same step. So all take turns within the same second of the machine, and what the stream takes is
left out. In the loop's time are the batch's way to the device, noise, the mask of bad steps, logging, votes, records.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.batch import Batch
from data.index import ImageFacts, Index
from models.build import build_objective
from scaling import rundir
from scaling.attempt import Attempt
from scaling.bench.ceilings import synchronizer
from scaling.bench.timing import summarize
from scaling.bench.trainer import CLASSES, StepCase, resident_inputs, use_backend
from scaling.config import RunConfig
from scaling.environment import Rank
from scaling.optimizer import build_optimizer
from scaling.run import Run
from scaling.start import build
from scaling.stop import StopRequest
from scaling.train import train

WARM_UP = 10


class BareStep:
    """Forward, backward, clipping if asked for, and fused AdamW on inputs that lie on the device."""

    def __init__(self, config: RunConfig, device: torch.device, backend: str, *, clips: bool) -> None:
        self.device, self.bf16 = device, config.precision == "bf16"
        self.clip = (config.train.clip or math.inf) if clips else None
        self.objective = build_objective(config.encoder_config(), config.objective_config(CLASSES), device=device)
        use_backend(self.objective, backend)
        self.optimizer = build_optimizer(self.objective, config)
        self.inputs = resident_inputs(config, device)

    def __call__(self) -> None:
        inputs = self.inputs
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss, _ = self.objective(inputs.images, inputs.labels, inputs.noise)
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def loop_bench(case: StepCase, device: torch.device, backend: str = "auto", steps: int = 200) -> dict[str, Any]:
    """Seconds a step of the loop and of bare steps, with and without the gradient's norm, and the loop's own share: the
    median over steps taken in turns."""
    config = dataclasses.replace(case, engine="single", accumulation=1).config()
    images = (WARM_UP + steps) * config.train.global_batch
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, images=images, log_every=1))
    wait = synchronizer(device)
    bare = {name: BareStep(config, device, backend, clips=name == "bare") for name in ("bare", "bare_without_norm")}
    seconds: dict[str, list[float]] = {name: [] for name in bare}

    def take_bare_steps() -> None:
        for name, step in bare.items():
            wait()
            start = time.perf_counter()
            step()
            wait()
            seconds[name].append(time.perf_counter() - start)

    seconds["loop"] = [0.0] * WARM_UP + _looped(config, backend, take_bare_steps)
    measured = {name: every[WARM_UP:] for name, every in seconds.items()}
    share, without = (
        summarize([loop / plain - 1 for loop, plain in zip(measured["loop"], measured[name], strict=True)])
        for name in bare
    )
    return {
        "backend": backend,
        "steps": steps,
        **{name: summarize(every).row() for name, every in measured.items()},
        "overhead_share": share.row(),
        "overhead_share_without_norm": without.row(),
        "overhead_is": "a logged step of the loop without its stream, over bare forward, backward, clipping and update",
    }


def _looped(config: RunConfig, backend: str, between: Callable[[], None]) -> list[float]:
    """Seconds of the loop's steps after the warm-up; `between` is called before each."""
    with tempfile.TemporaryDirectory(prefix="armscale-loop-") as folder, StopRequest(0.0) as stop:
        run = _run(config, Path(folder), stop)
        use_backend(run.engine.objective, backend)
        run.open_training_stream = lambda: _stream(run, between)  # type: ignore[method-assign]
        step, wait = run.engine.step, synchronizer(run.engine.device)

        def finished(lr: float, loss: Tensor | None = None) -> Tensor:
            """As the bare steps are: else a step's kernels would run on in the time of the stream."""
            norm = step(lr, loss)
            wait()
            return norm

        run.engine.step = finished  # type: ignore[method-assign]
        try:
            train(run)
        finally:
            run.watchdog.close()
            run.saver.close()
            run.metrics.close()
        rows = rundir.read_lines(run.attempt.folder / rundir.METRICS)[0][WARM_UP:]
    return [row["step_seconds"] - row["data_seconds"] for row in rows]


def _run(config: RunConfig, folder: Path, stop: StopRequest) -> Run:
    """A run whose data set has its facts alone."""
    classes = tuple(str(number) for number in range(CLASSES))
    side = config.train.image_size
    index = Index(
        split="train",
        source="resident",
        classes=classes,
        samples=config.train.images or 0,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        fingerprint="",
        samples_bytes=0,
        samples_sha256="",
        images=ImageFacts((side, side), (side, side), {}),
        shards=(),
        left_out=(),
        request={},
    )
    (folder / rundir.LOGS).mkdir()
    return build(config, Attempt.claim(folder), Rank(), index, None, stop)


def _stream(run: Run, between: Callable[[], None]) -> Iterator[Batch]:
    """The same images at the positions of every step; `between` is called before a batch is handed out."""
    micro, side = run.micro_batch, run.config.train.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (micro, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (micro,), generator=generator)
    while True:
        between()
        positions = torch.arange(run.counters.images_seen, run.counters.images_seen + micro)
        flips = positions % 2 == 0
        yield Batch(images, labels, positions, flips, positions, 0, run.counters.images_seen + micro, ())
