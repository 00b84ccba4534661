"""Parameters, gradients and optimizer sharded over ranks (FSDP2), block by block."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from models.noise import Noise
from models.objectives import Measured
from scaling.config import RunConfig
from scaling.dtensor import local
from scaling.engines.base import Engine
from scaling.environment import Rank
from scaling.optimizer import zero_moments


class ShardedEngine(Engine):
    """Every rank holds a part of each tensor and gathers a block's weights while it computes with them.

    Weights stay fp32 in every rank's memory and on the wire, and bf16 is autocast's: A_log, D and the time step's bias
    reach the scan as the master weights that they are.
    """

    def __init__(self, config: RunConfig, rank: Rank) -> None:
        super().__init__(config, rank)
        self.options = config.fsdp
        self.eager_passes = None if self.options.offload else 3  # offloaded, a pass waits for copies to the host
        rank.join()
        self.mesh = self._mesh()
        # An output may be a view (a linear layer's is); no objective writes into one, which is what torch warns of.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.parts: list[FSDPModule] = []
        self.shards: dict[Tensor, nn.Parameter] = {}
        self.spread: dict[Tensor, dict[str, Tensor]] = {}

    def _mesh(self) -> DeviceMesh:
        """All ranks in a row, or (replicas, shards): sharded among neighbours and replicated beyond them (HSDP)."""
        ranks, replicas = self.rank.ranks, self.options.replicas
        if replicas == 1:
            return init_device_mesh(self.device.type, (ranks,), mesh_dim_names=("shard",))
        return init_device_mesh(self.device.type, (replicas, ranks // replicas), mesh_dim_names=("replicate", "shard"))

    def shard(self, unit: nn.Module) -> None:
        """The root is the module inside the objective, as evaluation may call that one alone."""
        is_root = unit is self.objective
        sharded = fully_shard(
            self.module if is_root else unit,
            mesh=self.mesh,
            reshard_after_forward=self.options.reshard_after_forward and not is_root,  # backward begins with the root's
            offload_policy=(
                CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.options.offload else OffloadPolicy()
            ),
        )
        self.parts.append(sharded)
        if is_root:
            register_fsdp_forward_method(self.module, "features")  # what k-NN and probes call

    def allocate(self, objective: nn.Module) -> None:
        objective.to_empty(device="cpu" if self.options.offload else self.device)
        for buffer in objective.buffers():
            buffer.data = buffer.to(self.device)

    def compute(self, images: Tensor, labels: Tensor | None, noise: Noise, last: bool) -> Measured:
        # A recording knows what it adds to by the parameters' gradients, and FSDP keeps those of whole weights
        # elsewhere: recorded, every micro-batch's are reduced.
        self.parts[-1].set_requires_gradient_sync(last or self.captured is not None)
        with self.autocast():
            return self.objective(images, labels, noise)

    def streams(self) -> Sequence[torch.cuda.Stream]:
        """Weights are gathered and gradients scattered beside the computation; FSDP makes these in its first pass."""
        streams = self.parts[-1]._get_fsdp_state()._comm_ctx
        return (
            streams.all_gather_copy_in_stream,
            streams.all_gather_stream,
            streams.reduce_scatter_stream,
            streams.all_reduce_stream,
        )

    def wrap(self) -> None:
        """Has AdamW update this rank's parts as plain tensors, which costs the host a part of what DTensors do.

        They share the memory of the parameters, which FSDP leaves where it is once the objective has been allocated,
        and of the moments in `state`.
        """
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                self.shards[parameter] = shard = nn.Parameter(local(parameter))
                self.spread[parameter] = moments = zero_moments(parameter)
                self.optimizer.state[shard] = {name: local(moment) for name, moment in moments.items()}
            group["params"] = [self.shards[parameter] for parameter in group["params"]]

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        return self.spread[parameter]

    @torch.no_grad()
    def step(self, lr: float, loss: Tensor | None = None) -> Tensor:
        for parameter, shard in self.shards.items():
            if parameter.grad is not None:
                shard.grad, parameter.grad = local(parameter.grad), None
        if self.options.offload and loss is not None:
            loss = loss.cpu()  # with the norm there: AdamW's own copy of the mask would not wait for it to arrive
        return super().step(lr, loss)

    def norm(self) -> Tensor:
        """Replicas hold the same averaged gradients; one sum over all ranks, so that none of them updates alone."""
        return (self.sum(super().norm().square()) / self.options.replicas).sqrt()

    @contextmanager
    def evaluating(self, *, averaged: bool) -> Iterator[None]:
        with super().evaluating(averaged=averaged):
            self._keep_whole(True)
            try:
                yield
            finally:
                self._keep_whole(False)

    def _keep_whole(self, keep: bool) -> None:
        """Gathers all parameters until further notice, or lets go of them."""
        *blocks, root = self.parts
        for part in (root, *blocks):
            if part is not root:
                part.set_reshard_after_forward(self.options.reshard_after_forward and not keep, recurse=False)
            if keep:
                part.unshard()
            else:
                part.reshard()
