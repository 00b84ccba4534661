"""Engines: how one model is spread over ranks. All keep the contract of `scaling.engines.base.Engine`."""

from __future__ import annotations

from scaling.config import RunConfig
from scaling.engines.base import Engine
from scaling.engines.ddp import DistributedEngine
from scaling.engines.fsdp import ShardedEngine
from scaling.engines.single import SingleEngine
from scaling.engines.zero import ZeroEngine
from scaling.environment import Rank
from scaling.share import check_ranks

ENGINES: dict[str, type[Engine]] = {
    "single": SingleEngine,
    "ddp": DistributedEngine,
    "fsdp": ShardedEngine,
    "deepspeed": ZeroEngine,
}


def build_engine(config: RunConfig, rank: Rank) -> Engine:
    """The engine that the config names, for this rank; UserError where it does not suit the number of ranks."""
    check_ranks(config, rank.ranks)
    return ENGINES[config.engine](config, rank)
