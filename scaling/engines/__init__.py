"""Engines: how one model is spread over ranks. All keep the contract of `scaling.engines.base.Engine`."""

from __future__ import annotations

from scaling.config import RunConfig
from scaling.engines.base import Engine
from scaling.engines.ddp import DistributedEngine
from scaling.engines.fsdp import ShardedEngine
from scaling.engines.single import SingleEngine
from scaling.engines.zero import ZeroEngine
from scaling.environment import Rank
from scaling.errors import UserError

ENGINES: dict[str, type[Engine]] = {
    "single": SingleEngine,
    "ddp": DistributedEngine,
    "fsdp": ShardedEngine,
    "deepspeed": ZeroEngine,
}


def build_engine(config: RunConfig, rank: Rank) -> Engine:
    """The engine that the config names, for this rank."""
    if config.engine == "single" and rank.ranks > 1:
        raise UserError("engine", "single", [name for name in ENGINES if name != "single"], why=f"{rank.ranks} ranks")
    if config.train.global_batch % rank.ranks:
        raise UserError(f"{config.stage}.global_batch", config.train.global_batch, f"multiples of {rank.ranks} ranks")
    return ENGINES[config.engine](config, rank)
