"""Cells to runs: every stage under its parent, stages that cells share once, decays of many lengths on one trunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from scaling.config import RunConfig, TrainConfig
from scaling.errors import UserError
from scaling.study import identity
from scaling.study.match import matched
from scaling.study.stages import probe_of, sections, stage_run
from scaling.study.table import CellConfig, Study, cells


def runs(study: Study, fingerprint: str, samples: int | None = None, classes: int | None = None) -> list[RunConfig]:
    """One config a stage, parents before children; stages that several cells share stand once.

    `fingerprint` is that of the packed data ("" before packing: ids then serve only to tell the rows apart); `samples`
    and `classes` of the training split matter where arms are matched.
    """
    every = cell_runs(study, fingerprint, samples, classes)
    return list({config.run: config for _, stages in every for config in stages}.values())


def cell_runs(
    study: Study, fingerprint: str, samples: int | None = None, classes: int | None = None
) -> Iterator[tuple[dict[str, Any], list[RunConfig]]]:
    """(place on the axes, runs) of every cell."""
    for cell in matched(study, cells(study), samples, classes or 1000):
        yield cell.point, list(_chain(study, cell.config, sections(cell.config), None, fingerprint))


def _chain(
    study: Study, cell: CellConfig, names: list[str], parent: str | None, fingerprint: str
) -> Iterator[RunConfig]:
    """The stage that comes first in `names`, then the others under it; with branches, under each of its decays.

    A probe stands under the pretraining that it reads, or at the top where there is none.
    """
    if not names:
        return

    def named(section: str, train: TrainConfig, parent: str | None) -> RunConfig:
        config = stage_run(study, cell, section, train, parent)
        return dataclasses.replace(config, run=identity.run_id(config, fingerprint))

    def after(last: RunConfig) -> Iterator[RunConfig]:
        yield last
        if names[0] == "pretrain" and (probe := probe_of(cell)):
            yield named("probe", probe, last.run)
        yield from _chain(study, cell, names[1:], last.run, fingerprint)

    if parent is None and names[0] != "pretrain" and (probe := probe_of(cell)):
        yield named("probe", probe, None)
    train: TrainConfig = getattr(cell, names[0])
    if not train.branches:
        yield from after(named(names[0], train, parent))
        return
    _check_branches(train, names[0])
    trunk = named(names[0], trunk_of(train), parent)
    yield trunk
    for images in train.branches:
        yield from after(named(names[0], decay_of(train, images), trunk.run))


def trunk_of(train: TrainConfig) -> TrainConfig:
    """The stage that its branches share: warmed up, then at a constant rate to the last of them."""
    return dataclasses.replace(train, images=max(train.branches), epochs=None, decay=0.0)


def decay_of(train: TrainConfig, images: int) -> TrainConfig:
    """The stage that leaves the trunk after `images`: what one run of this length under `wsd` does in its last part.

    `decay` is the fraction of that whole length; it is rounded to whole optimiser steps, at least one.
    """
    batch = train.global_batch
    length = max(1, round(images * train.decay / (1 - train.decay) / batch)) * batch
    total = images + length
    return dataclasses.replace(
        train,
        branches=(),
        branched_at=images,
        images=total,
        epochs=None,
        decay=length / total,
        warmup=train.warmup * max(train.branches) / total,  # the trunk's, as a fraction of this length
    )


def _check_branches(train: TrainConfig, section: str) -> None:
    batch, last = train.global_batch, max(train.branches)
    warm = train.warmup * last
    valid = f"different multiples of global_batch ({batch}) after the warm-up ({warm:,.0f} images)"
    if any(images % batch or images < max(warm, batch) for images in train.branches):
        raise UserError(f"{section}.branches", list(train.branches), valid)
    if len(set(train.branches)) < len(train.branches):
        raise UserError(f"{section}.branches", list(train.branches), valid)
    if not 0 < train.decay < 1:
        raise UserError(f"{section}.decay", train.decay, "between 0 and 1, as every branch ends in a decay")
    if train.ema:
        raise UserError(f"{section}.ema", train.ema, "0", why="one average cannot suit branches of different lengths")
