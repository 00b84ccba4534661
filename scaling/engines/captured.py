"""Forward and backward of a micro-batch as CUDA graphs: the host launches two graphs, not thousands of kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.noise import Noise
from models.objectives import Measured

Compute = Callable[[Tensor, Tensor | None, Noise, bool], Measured]
"""(images, labels, noise, last) to loss and metrics, differentiable: Engine.compute."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Both graphs of a pass, and the memory that their replays read and fill."""

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    given: list[Tensor]
    loss: Tensor
    metrics: dict[str, Tensor]
    of_loss: Tensor
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class CapturedPass:
    """Runs `compute` and its backward a few times as they are, then records them and replays the recordings.

    A recording is of one kind of pass: shapes, synchronisation, and what it adds to. The first pass of a step has no
    gradients to add to, and its recording fills the same tensors every time; the passes after it add to those. All
    recordings share their memory. Weights are read where they lie: they may change, but not move. A forward pass must
    be followed by its backward pass.
    """

    def __init__(
        self,
        compute: Compute,
        parameters: Sequence[nn.Parameter],
        stream: torch.cuda.Stream,
        eager: int,
        further: Callable[[], Sequence[torch.cuda.Stream]],
    ) -> None:
        """`eager` passes of each kind come first, for what compiles or allocates when it first runs; they run on
        `stream`, as what autograd makes then and keeps must not wait for another stream while it is recorded.
        `further` names the streams that a pass uses beside it without first waiting for it, once there was a pass."""
        self.compute, self.parameters, self.stream, self.eager = compute, parameters, stream, eager
        self.further = further
        self.pool = torch.cuda.graph_pool_handle()
        self.anchor = torch.zeros((), device=stream.device, requires_grad=True)
        self.met: Counter[tuple[object, ...]] = Counter()
        self.recordings: dict[tuple[object, ...], Recording] = {}
        self.filled: Recording | None = None
        """What gave the parameters the gradients that they have; None where that was no replay."""

    def __call__(self, images: Tensor, labels: Tensor | None, noise: Noise, last: bool) -> Measured:
        """As `compute`, with a loss whose backward fills the gradients of the parameters."""
        fresh = all(parameter.grad is None for parameter in self.parameters)
        given = (images, labels, *noise)
        kind = (fresh or self.filled, last, *(None if tensor is None else tensor.shape for tensor in given))
        self.met[kind] += 1
        if self.met[kind] <= self.eager or not (fresh or self.filled):
            if fresh:
                self.filled = None
            return self._as_it_is(images, labels, noise, last)
        if kind not in self.recordings:
            self.recordings[kind] = self._record(images, labels, noise, last)
        recording = self.recordings[kind]
        if fresh:
            self.filled = recording
        for place, tensor in zip(recording.given, (tensor for tensor in given if tensor is not None), strict=True):
            place.copy_(tensor)
        loss = _Replay.apply(self.anchor, recording)
        return loss, {name: value.clone() for name, value in recording.metrics.items()}

    def _as_it_is(self, images: Tensor, labels: Tensor | None, noise: Noise, last: bool) -> Measured:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            measured = self.compute(images, labels, noise, last)
        torch.cuda.current_stream().wait_stream(self.stream)
        return measured

    def _record(self, images: Tensor, labels: Tensor | None, noise: Noise, last: bool) -> Recording:
        """Nothing is computed by it."""
        copies = [None if tensor is None else tensor.clone() for tensor in (labels, *noise)]
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        images = images.clone()
        with self._into(forward):
            loss, metrics = self.compute(images, copies[0], Noise(*copies[1:]), last)
        of_loss = torch.empty_like(loss)
        with self._into(backward):
            loss.backward(of_loss)
        given = [images, *(copy for copy in copies if copy is not None)]
        gradients = [(parameter, parameter.grad) for parameter in self.parameters]
        return Recording(forward, backward, given, loss.detach(), metrics, of_loss, gradients)

    def close(self) -> None:
        """Lets go of the recordings: NCCL waits for every graph that holds its collectives before a group can end."""
        for recording in self.recordings.values():
            recording.forward.reset()
            recording.backward.reset()
        self.recordings.clear()
        self.filled = None

    @contextmanager
    def _into(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Records what the block does, on all streams; other threads, which load data, may use the device meanwhile."""
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            for further in self.further():
                further.wait_stream(self.stream)
            yield
            for further in self.further():
                self.stream.wait_stream(further)


class _Replay(torch.autograd.Function):
    """A recorded pass as a node of autograd; `anchor` is there for the loss to need a gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, recording: Recording) -> Tensor:
        ctx.recording = recording
        recording.forward.replay()
        return recording.loss.clone()

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor) -> tuple[None, None]:
        recording = ctx.recording
        recording.of_loss.copy_(of_loss)
        recording.backward.replay()
        for parameter, gradient in recording.gradients:
            parameter.grad = gradient
        return None, None
