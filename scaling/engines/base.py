"""The contract of an engine, and what all engines share: clipping, the masked step, one checkpoint layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.noise import Noise
from models.objectives import Measured
from models.parallel import parallelize
from scaling.config import RunConfig
from scaling.dtensor import whole
from scaling.ema import WeightAverage
from scaling.engines.captured import CapturedPass
from scaling.environment import Rank
from scaling.optimizer import build_optimizer, set_learning_rate, zero_moments

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Engine(ABC):
    """prepare, then for every step forward and backward a micro-batch at a time, then step; state by parameter.

    After `step` the weights, moments and average have moved together or, on a non-finite gradient, not at all.
    """

    def __init__(self, config: RunConfig, rank: Rank) -> None:
        self.config = config
        self.rank = rank
        self.device = rank.device
        self.objective: nn.Module
        self.optimizer: torch.optim.Optimizer
        self.average: WeightAverage | None = None
        self.captured: CapturedPass | None = None

    eager_passes: int | None = None
    """Of a kind before a GPU replays its recording; None where an engine's passes cannot be recorded."""

    shard: Callable[[nn.Module], None] | None = None
    """Spreads a block, and at last the objective, over ranks; None where every rank holds the whole model."""

    def prepare(self, objective: nn.Module, steps: int, fill: Callable[[nn.Module], None] | None = None) -> None:
        """Takes the objective to the device, spreads it, makes the optimizer and the average of the weights.

        An objective on the meta device comes with `fill`, which gives it its values once each rank holds its part.
        """
        config = self.config
        self.objective = objective.train()
        if fill is None:
            objective.to(self.device)
        parallelize(objective, checkpointing=config.checkpointing, compile=config.compile, shard=self.shard)
        if fill is not None:
            self.allocate(objective)
            fill(objective)
        self.optimizer = build_optimizer(objective, config)
        self.build()
        if config.train.ema:
            self.average = WeightAverage(self.masters(), max(1.0, config.train.ema * steps))
        self.skipped = torch.zeros((), dtype=torch.float32, device=self.device)

    def allocate(self, objective: nn.Module) -> None:
        """Memory for an objective on the meta device."""
        objective.to_empty(device=self.device)

    def build(self) -> None:
        """`wrap`, and where the passes will be recorded on a GPU, what does that."""
        if not self.config.compile or self.device.type != "cuda" or self.eager_passes is None:
            self.wrap()
            return
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):  # where nodes of autograd that outlive a pass are made
            self.wrap()
        parameters = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        self.captured = CapturedPass(self.compute, parameters, stream, self.eager_passes, self.streams)

    def streams(self) -> Sequence[torch.cuda.Stream]:
        """Those of a GPU that `compute` and its backward use beside the current one; known after the first pass."""
        return ()

    def wrap(self) -> None:  # noqa: B027  # most engines need nothing here
        """What an engine builds around the objective and its optimizer."""

    def masters(self) -> dict[str, Tensor]:
        """The fp32 weights that the optimizer updates on this rank, the live memory."""
        return {name: weight for name, weight in self.objective.named_parameters() if weight.requires_grad}

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """What AdamW keeps of a parameter, the live tensors; zeros before the first update."""
        if not self.optimizer.state[parameter]:
            self.optimizer.state[parameter] = zero_moments(parameter)
        return self.optimizer.state[parameter]

    @property
    def module(self) -> nn.Module:
        """Encoder with its head or decoder, inside the objective."""
        return self.objective.get_submodule("module")

    def forward(self, images: Tensor, labels: Tensor | None, noise: Noise, *, last: bool) -> Measured:
        """(loss, metrics) of a micro-batch under the run's precision.

        Ranks need synchronise gradients on the `last` micro-batch of a step alone. Compiled on a GPU, `compute` and its
        backward are replayed as CUDA graphs where the engine's can be.
        """
        return (self.captured or self.compute)(images, labels, noise, last)

    @abstractmethod
    def compute(self, images: Tensor, labels: Tensor | None, noise: Noise, last: bool) -> Measured:
        """`forward`, kernel by kernel."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`."""
        loss.backward()

    def close(self) -> None:
        """After the last pass and before the ranks leave their group, whose end recordings would hold up for ever."""
        if self.captured is not None:
            self.captured.close()

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over ranks."""
        if self.rank.ranks == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def autocast(self) -> torch.autocast:
        """fp32 master weights under bf16 matrix products, or plain fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def step(self, lr: float, loss: Tensor | None = None) -> Tensor:
        """One AdamW update at `lr`; returns the gradient norm before clipping, on the device.

        A non-finite norm, or `loss` (the step's, the same on all ranks), makes the update a no-op, masked on the
        device: the host never waits to find out.
        """
        norm = self.clip(self.config.train.clip)
        bad = torch.isfinite(norm if loss is None else norm + loss).logical_not().float()
        set_learning_rate(self.optimizer, lr)
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by the fused update, as gradient scalers do
        self.update()
        if self.average is not None:
            self.average.update(1.0 - bad)
        self.skipped += bad
        return norm

    def clip(self, limit: float) -> Tensor:
        """Has the update scale gradients down to a global norm of `limit` (0: as they are); returns the norm they have.

        The scale is that of torch.nn.utils.clip_grad_norm_; the fused update divides by it as it reads the gradients.
        """
        norm = self.norm()
        if limit:
            self.optimizer.grad_scale = ((norm + 1e-6) / limit).clamp(min=1.0)  # type: ignore[attr-defined]
        return norm

    def norm(self) -> Tensor:
        """The norm of all gradients that the optimizer is to take, over all ranks."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])

    def update(self) -> None:
        """The optimizer's own step, which the optimizer's `found_inf` masks; the gradients are then gone."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def evaluating(self, *, averaged: bool) -> Iterator[None]:
        """Inside the block `objective` and `module` evaluate, with the averaged weights if asked for.

        Ranks may then call them a different number of times: no forward pass waits for another rank.
        """
        self.objective.eval()
        with self.holding(averaged=averaged):
            yield
        self.objective.train()

    @contextmanager
    def holding(self, *, averaged: bool) -> Iterator[None]:
        """Inside the block the module's weights are the averaged ones, if asked for and where that is on."""
        with self.average.applied() if self.average and averaged else nullcontext():
            yield

    def weights(self) -> dict[str, Tensor]:
        """Whole state of `module` on the CPU of rank 0, averaged where that is on; empty on the other ranks.

        All ranks call it.
        """
        with self.holding(averaged=True):
            state = {}
            for name, tensor in self.module.state_dict().items():
                gathered = whole(tensor)
                if self.rank.rank == 0:
                    state[name] = gathered.cpu().contiguous().clone()
        return state

    def state(self) -> dict[str, Any]:
        """Every tensor of the run by parameter: model.<name>, optimizer.<name>.<moment>, average.<name>, skipped.

        Loading is in place: the tensors returned are the live ones. `loaded` is called after it.
        """
        tensors: dict[str, Any] = {"skipped": self.skipped}
        for name, parameter in self.objective.named_parameters():
            tensors[f"model.{name}"] = parameter.detach()
            if not parameter.requires_grad:
                continue
            moments = self.moments(parameter)
            tensors |= {f"optimizer.{name}.{moment}": moments[moment] for moment in MOMENTS}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        return tensors

    def loaded(self) -> None:  # noqa: B027
        """After `state` was filled from a checkpoint: brings further copies of the weights up to date."""
