"""A step is shared as the data room shares it, and what cannot be is refused before a run is claimed."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from data.batch import mix
from data.stream import open_stream
from scaling.config import FSDPConfig, RunConfig, augmentation
from scaling.errors import UserError
from scaling.share import share_of
from scaling.start import check_inputs
from tests.scaling.runs import small_config


def config_of(shards: Path, **changes: Any) -> RunConfig:
    return small_config(shards, **{"stage": "finetune", "strategy": "scratch", "engine": "ddp", **changes})


def first_batches(config: RunConfig, ranks: int, micro_batch: int) -> int:
    """Takes the first step of every rank and mixes it; the number of micro-batches of the last."""
    options, seen = augmentation(config.train), 0
    for rank in range(ranks):
        stream = open_stream(
            config.data.shards, options, global_batch=config.train.global_batch, micro_batch=micro_batch, seed=0,
            rank=rank, ranks=ranks, lanes=4,
        )  # fmt: skip
        for seen, batch in enumerate(stream, 1):
            mix(batch.images.float(), batch.labels, batch.positions, options, 3, seed=0)
            if seen * micro_batch * ranks >= config.train.global_batch:
                break
    return seen


def test_what_is_accepted_is_what_the_stream_and_mixing_take(shards: Path) -> None:
    """All small cases: batch, micro-batch, group of mixing, and ranks up to 3."""
    refused = 0
    for batch, micro, group, ranks in itertools.product((8, 12), (4, 6, None), (1, 4, 6), (1, 2, 3)):
        config = config_of(
            shards, global_batch=batch, micro_batch=micro, mix_group=group, randaugment="", erasing=0.0, crop="none"
        )
        if micro is not None and batch % micro:
            continue  # scaling.checks has that
        try:
            share = share_of(config, ranks)
        except UserError:
            with pytest.raises(UserError):
                first_batches(config, ranks, min(micro or batch // ranks, batch // ranks))
            refused += 1
        else:
            assert first_batches(config, ranks, share.micro_batch) == share.accumulation
    assert refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"global_batch": 50}, "finetune.global_batch: 50 .*multiples of 4 ranks"),
        ({"global_batch": 96, "micro_batch": 16}, "finetune.micro_batch: 16 .*divisors of the 24 images"),
        ({"global_batch": 64, "micro_batch": 8}, "finetune.mix_group: 16 .*divisors of the 8 images"),
        ({"engine": "single"}, "engine: 'single' .*ddp, fsdp, deepspeed"),
        ({"engine": "fsdp", "fsdp": FSDPConfig(replicas=3)}, "fsdp.replicas: 3 .*divisors of the 4 ranks"),
    ],
)
def test_a_run_refuses_before_it_is_claimed(shards: Path, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_inputs(config_of(shards, **changes), tmp_path, 4)


def test_mixing_matters_to_classifiers_alone(shards: Path) -> None:
    config = config_of(shards, global_batch=8, mixup=0.0, cutmix=0.0)
    assert share_of(config, 2) == (4, 1)
    pretraining = dataclasses.replace(config, stage="pretrain", strategy="ar")
    assert share_of(dataclasses.replace(pretraining, train=dataclasses.replace(config.train, mixup=1.0)), 4) == (2, 1)
