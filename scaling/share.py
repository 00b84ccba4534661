"""A rank's share of a step: what does not divide over the ranks, or within one, is refused here and nowhere else."""

from __future__ import annotations

from typing import NamedTuple

from scaling.config import ENGINES, RunConfig
from scaling.errors import UserError


class Share(NamedTuple):
    """Images per rank and forward, and how many of these make up the rank's part of a step."""

    micro_batch: int
    accumulation: int


def share_of(config: RunConfig, ranks: int) -> Share:
    """That of each of `ranks` ranks; UserError where a step cannot be shared evenly among so many."""
    check_ranks(config, ranks)
    train = config.train
    images = train.global_batch // ranks
    micro_batch = min(train.micro_batch or images, images)
    if images % micro_batch:
        valid = f"divisors of the {images} images of a rank"
        raise UserError(f"{config.stage}.micro_batch", micro_batch, valid, why=_spread(config, ranks))
    if config.classifies and (train.mixup or train.cutmix) and micro_batch % train.mix_group:
        valid = f"divisors of the {micro_batch} images of a micro-batch"
        raise UserError(f"{config.stage}.mix_group", train.mix_group, valid, why=_spread(config, ranks))
    return Share(micro_batch, images // micro_batch)


def check_ranks(config: RunConfig, ranks: int) -> None:
    """UserError where the engine, or the batch as a whole, does not suit so many ranks."""
    if config.train.global_batch % ranks:
        raise UserError(f"{config.stage}.global_batch", config.train.global_batch, f"multiples of {ranks} ranks")
    if config.engine == "single" and ranks > 1:
        raise UserError("engine", "single", [name for name in ENGINES if name != "single"], why=f"{ranks} ranks")
    if config.engine == "fsdp" and ranks % config.fsdp.replicas:
        raise UserError("fsdp.replicas", config.fsdp.replicas, f"divisors of the {ranks} ranks")


def _spread(config: RunConfig, ranks: int) -> str:
    return f"global_batch {config.train.global_batch} over {ranks} ranks"
