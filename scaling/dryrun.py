"""A run of any world size carried through a step on one CPU, without memory for a single tensor.

The run's own engine works on fake tensors (shapes, dtypes and lifetimes alone) in a fake process group whose
collectives answer at once. So a model that does not build, a batch that does not divide or a sharding that does not
work shows here, and the birth and death of every storage are counted, which gives the peak of one rank.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.build import BUILDERS
from models.config import MAEConfig, check
from models.mamba import SelectiveScan
from models.noise import Noise
from models.scan.backends import load
from models.scan.inputs import ScanInputs
from scaling.config import RunConfig
from scaling.engines import build_engine
from scaling.engines.base import Engine
from scaling.engines.single import SingleEngine
from scaling.environment import Rank
from scaling.share import Share, share_of


@dataclass(frozen=True)
class DryRun:
    """Of rank 0: bytes at the peak of a step, bytes that stay between two steps, and how long this took."""

    peak: int
    resident: int
    seconds: float


class FakeRank(Rank):
    """Its device is the CPU, also where there are GPUs: nothing of theirs is asked."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


class Replica(SingleEngine):
    """DDP without its reducer, which looks into memory: gradients lie in buckets that stay."""

    def lay_out_buckets(self) -> None:
        """At the first step, and anew at the second, where for a moment the old ones are there too."""
        trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        buckets = [torch.zeros_like(parameter) for parameter in trained]
        for parameter, bucket in zip(trained, buckets, strict=True):
            parameter.grad = bucket
        self.buckets = buckets


def obstacle(config: RunConfig) -> str:
    """Why a run of this config cannot be carried out on fake tensors; empty where it can."""
    if config.engine == "deepspeed":
        return "DeepSpeed keeps its partitions in real memory"
    if config.engine == "fsdp" and config.fsdp.offload:
        return "a fake device cannot be told from the CPU that it is offloaded to"
    return ""


class Ledger(TorchDispatchMode):
    """Counts the bytes of every fake storage from the operator that makes it to the end of its last tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.known: dict[int, int] = {}

    def __enter__(self) -> Ledger:
        """FSDP lets go of gathered weights, and takes memory for them, by resizing their storage: no operator."""
        self.resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = self._counted_resize()  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *details: Any) -> None:
        torch.UntypedStorage.resize_ = self.resize  # type: ignore[method-assign]
        super().__exit__(*details)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, Tensor) and kind not in (Tensor, FakeTensor) for kind in types):
            return NotImplemented  # a DTensor: what it does with its parts comes here by itself
        out = function(*args, **(kwargs or {}))
        inside = _partial_sums(args) if function is torch.ops.armscale.selective_scan_backward.default else 0
        for tensor in tree_leaves(out):
            if isinstance(tensor, FakeTensor) and tensor.device.type != "meta":
                self._enter(tensor.untyped_storage())
        self.peak = max(self.peak, self.held + inside)
        return out

    def _counted_resize(self) -> Any:
        resize, ledger = self.resize, self

        def counted(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if storage._cdata in ledger.known:
                ledger._resized(storage._cdata, size)
            return result

        return counted

    def _enter(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known[storage._cdata] = 0
        self._resized(storage._cdata, storage.nbytes())
        weakref.finalize(storage, self._leave, storage._cdata)

    def _resized(self, key: int, size: int) -> None:
        self.held += size - self.known[key]
        self.known[key] = size
        self.peak = max(self.peak, self.held)

    def _leave(self, key: int) -> None:
        self.held -= self.known.pop(key)


def _partial_sums(args: tuple[Any, ...]) -> int:
    """Bytes that the scan's Triton backward needs inside: sums for dB and dC of every program, in fp32."""
    inputs, backend = ScanInputs(*args[: len(ScanInputs._fields)]), args[-1]
    if backend != "triton":
        return 0
    (_, batch, state, channels), _ = load("selective_scan", backend).kept_shapes(inputs)
    programs = -(-channels // inputs.groups // load("selective_scan", backend).BACKWARD_BLOCK)
    return 2 * 4 * programs * batch * inputs.u.shape[1] * inputs.groups * int(state)


def dry_run(config: RunConfig, ranks: int, classes: int, *, on_gpu: bool = True) -> DryRun:
    """A step of rank 0 of `ranks`, uncompiled, with the scan of a GPU or of this CPU.

    Raises UserError for what the run itself would refuse. `config` has no `obstacle`.
    """
    assert not obstacle(config)
    started = time.monotonic()
    config = replace(config, compile=False)
    encoder, objective = config.encoder_config(), config.objective_config(classes)
    check(encoder, objective)
    share = share_of(config, ranks)
    with _fake_group(ranks):
        rank = FakeRank(0, ranks)
        engine = Replica(config, rank) if config.engine == "ddp" else build_engine(config, rank)
        engine.allocate = lambda objective: None  # type: ignore[method-assign]  # it is there already
        with FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
            module = BUILDERS[type(objective)](encoder, objective)
            if on_gpu:
                _scan_as_on_gpu(module)
            engine.prepare(module, 1000, lambda objective: None)
            engine.state()  # makes the moments, as a run does that looks for a checkpoint
            for _ in range(2):  # the first fills caches of DTensor, which takes fake tensors of whole parameters
                ledger.peak = ledger.held
                if isinstance(engine, Replica):
                    engine.lay_out_buckets()
                resident = ledger.held
                _step(engine, config, share, classes)
            return DryRun(ledger.peak, resident, time.monotonic() - started)


def _scan_as_on_gpu(objective: nn.Module) -> None:
    """Scans keep the states that the Triton kernels keep, where their package is installed to say how many."""
    for module in objective.modules() if find_spec("triton") else ():
        if isinstance(module, SelectiveScan):
            module.forward = partial(_triton_scan, module)  # type: ignore[method-assign]


def _triton_scan(
    scan: SelectiveScan, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor | None, order: Tensor | None
) -> Tensor:
    """`scan.forward` of a GPU, although the tensors say that they are on a CPU."""
    B, C = (matrix.unsqueeze(2) if matrix.dim() == 3 else matrix for matrix in (B, C))
    inputs = ScanInputs(x, dt, -torch.exp(scan.A_log), B, C, scan.D, z, scan.dt_bias, True, order)
    return torch.ops.armscale.selective_scan(*inputs, True, "triton")[0]


def _step(engine: Engine, config: RunConfig, share: Share, classes: int) -> None:
    """Of more than two micro-batches the first and the last: those between are like the first."""
    encoder, micro = config.encoder_config(), share.micro_batch
    images = torch.empty(micro, encoder.channels, encoder.image_size, encoder.image_size)
    labels = torch.empty(micro, classes) if config.classifies else None
    masked = isinstance(config.objective_config(classes), MAEConfig)
    noise = Noise(
        mask=torch.empty(micro, encoder.patches) if masked else None,
        drop_path=torch.empty(micro, encoder.depth, 2) if config.train.drop_path else None,
    )
    for last in (False, True) if share.accumulation > 1 else (True,):
        loss, _ = engine.forward(images, labels, noise, last=last)
        engine.backward(loss)
        del loss
    engine.step(0.0)


@contextmanager
def _fake_group(ranks: int) -> Iterator[None]:
    """A process group of `ranks` in which this process is rank 0 and no other exists."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
