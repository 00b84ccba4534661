"""Optimizer, gradients and weights partitioned over ranks by DeepSpeed's ZeRO, stages 1 to 3.

What DeepSpeed is asked for is its partitioning, reduction and gathering; clipping, the masked step and checkpoints are
ours, as on every engine. The update is torch's AdamW on DeepSpeed's flat fp32 buffers, on the CPU too under offload, so
nothing needs compiling and the update is the one that the other engines make.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.noise import Noise
from models.objectives import Measured
from models.parallel import BLOCKS
from scaling.config import ZERO_BUCKET, RunConfig
from scaling.engines.base import Engine
from scaling.engines.partition import Partition, partition_of_replicated, partition_of_sharded, reduced_gradients
from scaling.environment import Rank
from scaling.errors import UserError


class ZeroEngine(Engine):
    """Every rank updates its share of the weights; at stage 3 it holds no more of them between two blocks.

    Weights are fp32 in memory and on the wire, and bf16 is autocast's (DeepSpeed's own bf16 would hand the scan a bf16
    A_log). Stage 1 reduces gradients once a step; stages 2 and 3 keep a share of them alone, which takes a reduction
    every micro-batch.
    """

    def __init__(self, config: RunConfig, rank: Rank) -> None:
        super().__init__(config, rank)
        self.options = config.deepspeed
        self.sharded = self.options.stage == 3
        self.partition: Partition
        rank.join()
        self.library = _deepspeed(rank)

    def allocate(self, objective: nn.Module) -> None:
        """In the memory of the CPU: stage 3 takes one tensor at a time to the device and keeps this rank's part."""
        objective.to_empty(device="cpu")
        for buffer in objective.buffers():
            buffer.data = buffer.to(self.device)

    def wrap(self) -> None:
        settings = self._settings()
        if self.sharded:  # a block's weights are gathered and let go of together
            self.library.utils.set_z3_leaf_modules(self.objective, list(BLOCKS))
            self.library.zero.Init(module=self.objective, config_dict_or_path=settings)
        self.wrapped, self.zero, *_ = self.library.initialize(
            model=self.objective, optimizer=self.optimizer, config=settings
        )
        self.partition = (
            partition_of_sharded(self.zero, self.objective, self.rank.rank)
            if self.sharded
            else partition_of_replicated(self.zero, self.objective)
        )

    def _settings(self) -> dict[str, Any]:
        """DeepSpeed's config; its defaults differ where we say so."""
        on_gpu = self.device.type == "cuda"
        zero: dict[str, Any] = {
            "stage": self.options.stage,
            "overlap_comm": on_gpu and self.options.stage > 1,  # at stage 1 it would reduce every micro-batch
            "reduce_bucket_size": ZERO_BUCKET,
            "allgather_bucket_size": ZERO_BUCKET,
            "stage3_prefetch_bucket_size": ZERO_BUCKET,
            "stage3_param_persistence_threshold": 0,
        }
        if self.options.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
        return {
            # Batches, clipping and accumulation are ours: DeepSpeed sees one micro-batch after another.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": zero,
            "zero_force_ds_cpu_optimizer": False,
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
            # With modules named here, DeepSpeed would send their gradients in bf16.
            "torch_autocast": {
                "enabled": self.config.precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
        }

    def masters(self) -> dict[str, Tensor]:
        return {str(number): flat for number, flat in enumerate(self.partition.flats)}

    def compute(self, images: Tensor, labels: Tensor | None, noise: Noise, last: bool) -> Measured:
        self.wrapped.set_gradient_accumulation_boundary(last)
        return self.wrapped(images, labels, noise)

    def backward(self, loss: Tensor) -> None:
        self.wrapped.backward(loss)

    def clip(self, limit: float) -> Tensor:
        if self.options.offload and self.device.type == "cuda":
            torch.cuda.synchronize()  # copies of the gradients to the CPU are under way
        gradients = reduced_gradients(self.zero, offload=self.options.offload)
        squares = torch.nn.utils.get_total_norm(gradients).to(self.device).square()
        norm = self.sum(squares).sqrt()
        if limit:
            # As torch.nn.utils.clip_grad_norm_ has it, but never NaN: that would stay in the buffers' padding.
            scale = (limit / (norm + 1e-6)).clamp(max=1.0).nan_to_num(nan=1.0)
            torch._foreach_mul_(gradients, scale.to(gradients[0].device))
        return norm

    def update(self) -> None:
        if self.options.offload:  # AdamW's own copy of the mask to where the weights are would not wait for it
            self.optimizer.found_inf = self.optimizer.found_inf.cpu()  # type: ignore[attr-defined]
        self.wrapped.step()

    @contextmanager
    def holding(self, *, averaged: bool) -> Iterator[None]:
        with super().holding(averaged=averaged):
            if averaged:
                self.loaded()
            with self._whole():
                yield
        if averaged:
            self.loaded()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """At stage 3 all weights are gathered inside the block, and no module waits for other ranks.

        DeepSpeed's `unwrap_model_for_generation` does the same but for the hook of the root, which synchronises ranks.
        """
        if not self.sharded:
            yield
            return
        hooks = self.zero.parameter_offload
        with self.library.zero.GatheredParameters(list(self.objective.parameters())):
            hooks._remove_module_hooks()
            hooks.forward_hooks, hooks.backward_hooks = [], []
            yield
            hooks.setup_zero_stage3_hooks()

    def state(self) -> dict[str, Any]:
        flats = self.partition.flats
        for flat in flats:
            self.moments(flat)
        buffers = {name: [self.optimizer.state[flat][name] for flat in flats] for name in ("exp_avg", "exp_avg_sq")}
        tensors: dict[str, Any] = {"skipped": self.skipped}
        for piece in self.partition.pieces:
            tensors[f"model.{piece.name}"] = piece.of(flats)
            tensors[f"optimizer.{piece.name}.step"] = self.optimizer.state[flats[piece.flat]]["step"]
            for moment, of_all in buffers.items():
                tensors[f"optimizer.{piece.name}.{moment}"] = piece.of(of_all)
            if self.average is not None:
                tensors[f"average.{piece.name}"] = piece.of(self.average.average)
        return tensors

    def loaded(self) -> None:
        """The weights that modules compute with are copies of the flat buffers'; all ranks call it."""
        if not self.sharded:
            self.zero.update_lp_params()
            return
        for copy, flat in zip(self.zero.fp16_partitioned_groups_flat, self.partition.flats, strict=True):
            copy.data.copy_(flat.detach())


def _deepspeed(rank: Rank) -> Any:
    """The library, told what it reads from the environment alone; UserError where it is not installed."""
    os.environ |= {
        "LOCAL_RANK": str(rank.local_rank),
        "LOCAL_WORLD_SIZE": str(max(1, rank.ranks // rank.nodes)),
        "DS_ACCELERATOR": rank.device.type,
    }
    try:
        import deepspeed
    except ImportError as error:
        raise UserError("engine", "deepspeed", "engines that are installed", why=f"{error}; see README") from None
    if rank.device.type == "cpu":
        os.environ["LOCAL_SIZE"] = os.environ["LOCAL_WORLD_SIZE"]
    # No compiled operation is used: torch does the collectives. Else every rank would look for compilers and build
    # DeepSpeed's own ones when it starts.
    deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    return deepspeed
