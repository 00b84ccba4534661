"""What a cell of the sweep goes through: its stages in their order, and the config of each."""

from __future__ import annotations

import dataclasses
from typing import Any

from scaling.checks import check
from scaling.config import PRETRAINED, PROBE, RunConfig, TrainConfig
from scaling.errors import UserError
from scaling.share import share_of
from scaling.study.table import CellConfig, Study

SECTIONS = {"pretrain": "pretrain", "probe": "probe", "finetune": "finetune", "finetune_384": "finetune"}
"""Sections of a cell, a parent before its child, and the stage that each is."""
PROBED = ("ar", "mae", "scratch")
"""Strategies whose encoder is probed before any finetuning; that of `scratch` is random."""
SHARED = {item.name for item in dataclasses.fields(RunConfig)} & {item.name for item in dataclasses.fields(CellConfig)}
"""Fields of a cell that all of its stages have."""


def sections(cell: CellConfig) -> list[str]:
    """The sections of the stages that a cell goes through, in their order."""
    further = ["finetune_384"] if (cell.finetune_384.images or cell.finetune_384.epochs) else []
    return (["pretrain"] if cell.strategy in PRETRAINED else []) + ["finetune", *further]


def probe_of(cell: CellConfig) -> TrainConfig | None:
    """The probe of a cell's encoder before it sees a label; None where none is asked.

    Images, batch and encoder are those of the pretraining.
    """
    if cell.strategy not in PROBED or not cell.probe:
        return None
    names = ("global_batch", "image_size", "scan_directions", "class_token", "eval_resize", "eval_batch")
    return dataclasses.replace(PROBE, evaluate=cell.probe, **{name: getattr(cell.pretrain, name) for name in names})


def tunes_pretraining(study: Study) -> bool:
    """Whether the grid of `tune` touches what comes before finetuning; else that serves trials and final runs alike."""
    return study.tune is not None and not all(name.startswith("finetune") for name in study.tune.grid)


def stage_run(study: Study, cell: CellConfig, section: str, train: TrainConfig, parent: str | None) -> RunConfig:
    """The checked config of one stage; a refusal names the section, where `scaling.checks` knows the stage alone."""
    shared: dict[str, Any] = {name: getattr(cell, name) for name in SHARED}
    data = study.data
    if study.tune and SECTIONS[section] != "finetune" and not tunes_pretraining(study):
        data = dataclasses.replace(data, held_out=0.0)
    config = RunConfig(
        study=study.name,
        purpose=study.purpose,
        data=data,
        stage=SECTIONS[section],
        parent=parent,
        train=train,
        **shared,
    )
    try:
        check(config)
        share_of(config, config.resources.ranks)
    except UserError as error:
        stage, dot, name = error.field.partition(".")
        field = f"{section}.{name}" if dot and stage == config.stage else error.field
        raise UserError(field, error.value, error.valid, error.why) from None
    return config
