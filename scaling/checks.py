"""What cannot work is refused before anything starts: one error naming the field as it stands in the user's file."""

from __future__ import annotations

import math
from typing import Any

from models.config import ENCODERS
from models.config import check as check_model
from models.ladder import SIZES
from scaling.config import (
    ENGINES,
    EVALUATORS,
    PARAMETRISATIONS,
    PRECISIONS,
    PRETRAINED,
    PURPOSES,
    SCHEDULES,
    STAGES,
    STRATEGIES,
    VARIANTS,
    ZERO_STAGES,
    EvaluatorConfig,
    RunConfig,
    TrainConfig,
    augmentation,
)
from scaling.errors import UserError
from scaling.timelimit import minutes

SAVING = ("checkpoint_every", "keep_checkpoints")


def choice(name: str, value: Any, valid: Any) -> Any:
    """`value` if it is one of `valid`."""
    if value not in valid:
        raise UserError(name, value, valid)
    return value


def folder_name(name: str, value: str) -> str:
    """`value` if it can name a folder under the root, and no place outside of it."""
    if not all(letter.isalnum() or letter in "-_." for letter in value) or value.startswith("."):
        raise UserError(name, value, "letters, digits, '-', '_' and '.', as it names a folder")
    return value


def _above_0(name: str, value: float) -> None:
    if not 0 < value < math.inf:  # so put, NaN is refused too
        raise UserError(name, value, "numbers above 0")


def _at_least(name: str, value: float, low: float) -> None:
    if not low <= value < math.inf:
        raise UserError(name, value, f"numbers from {low:g} on")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(name, value, f"from {low:g} to {high:g}")


def check(config: RunConfig) -> None:
    """Raises UserError for the first field that cannot work, before anything is started."""
    folder_name("study", config.study)
    choice("strategy", config.strategy, STRATEGIES)
    choice("encoder", config.encoder, ENCODERS)
    choice("size", config.size, tuple(SIZES))
    choice("stage", config.stage, STAGES)
    choice("model.parametrisation", config.model.parametrisation, PARAMETRISATIONS)
    _above_0("model.base_width", config.model.base_width)
    choice("purpose", config.purpose, PURPOSES)
    choice("engine", config.engine, ENGINES)
    choice("precision", config.precision, PRECISIONS)
    for name in ("nodes", "gpus_per_node"):
        _at_least(f"resources.{name}", getattr(config.resources, name), 1)
    _at_least("resources.grace", config.resources.grace, 0)
    minutes(config.resources.time, "resources.time")
    _at_least("data.workers", config.data.workers, 0)
    _at_least("data.lanes", config.data.lanes, 1)
    if config.stage == "pretrain" and config.strategy not in PRETRAINED:
        valid = ("finetune", "probe")
        raise UserError("stage", config.stage, valid, why=f"strategy {config.strategy} has no pretraining")
    _at_least("fsdp.replicas", config.fsdp.replicas, 1)
    if not 0 <= config.data.held_out < 1:
        raise UserError("data.held_out", config.data.held_out, "from 0 to below 1")
    choice("deepspeed.stage", config.deepspeed.stage, ZERO_STAGES)
    if config.stage == "probe":
        for name in ("global_batch", "eval_batch"):
            _above_0(f"probe.{name}", getattr(config.train, name))
    else:
        _check_train(config.train, config.stage)
    _check_evaluation(config.train, config.stage)
    for name, low in (("bad_steps", 1), ("spike", 0), ("rollbacks", 0), ("step_timeout", 0), ("timing_every", 1)):
        _at_least(f"faults.{name}", getattr(config.faults, name), low)
    try:
        check_model(config.encoder_config(), config.objective_config(classes=2))
    except UserError as error:
        section = _section(config, error.field)
        raise UserError(f"{section}.{error.field}", error.value, error.valid, error.why) from None


def _section(config: RunConfig, name: str) -> str:
    """The section of a study in which the field `name` of a model stands."""
    if hasattr(config.model, name):
        return "model"
    return config.stage if hasattr(config.train, name) else config.strategy


def _check_train(train: TrainConfig, stage: str) -> None:
    """The fields of one stage section, named as they stand in a study."""
    if (train.images is None) == (train.epochs is None):
        both = {"images": train.images, "epochs": train.epochs}
        raise UserError(f"{stage}.images", both, "exactly one of images and epochs")
    if (train.lr is None) == (train.base_lr is None):
        raise UserError(f"{stage}.lr", {"lr": train.lr, "base_lr": train.base_lr}, "exactly one of lr and base_lr")
    above_0 = (
        "images",
        "epochs",
        "branched_at",
        "global_batch",
        "micro_batch",
        "lr",
        "base_lr",
        "eval_batch",
        "log_every",
        *SAVING,
    )
    for name in above_0:
        value = getattr(train, name)
        if value is not None:
            _above_0(f"{stage}.{name}", value)
    if train.images is not None and train.images < train.global_batch:
        raise UserError(f"{stage}.images", train.images, f"at least one global_batch ({train.global_batch})")
    if train.micro_batch is not None and train.global_batch % train.micro_batch:
        raise UserError(f"{stage}.micro_batch", train.micro_batch, f"divisors of global_batch ({train.global_batch})")
    if train.keep_every < 0:
        raise UserError(f"{stage}.keep_every", train.keep_every, "steps, or 0 for none")
    for name in ("min_lr", "weight_decay", "clip"):
        _at_least(f"{stage}.{name}", getattr(train, name), 0)
    if not all(0 <= beta < 1 for beta in train.betas):
        raise UserError(f"{stage}.betas", list(train.betas), "two numbers from 0 to below 1")
    for name in ("warmup", "decay", "ema", "layer_decay"):
        _between(f"{stage}.{name}", getattr(train, name), 0.0, 1.0)
    choice(f"{stage}.schedule", train.schedule, SCHEDULES)
    if (train.branches or train.branched_at) and train.schedule != "wsd":
        raise UserError(f"{stage}.schedule", train.schedule, "wsd", why="only a constant rate lets decays branch off")


def _check_evaluation(train: TrainConfig, stage: str) -> None:
    """How the images of one stage are made, and the list of what evaluates it."""
    for number, evaluator in enumerate(train.evaluate):
        check_evaluator(evaluator, stage, f"{stage}.evaluate[{number}]")
    try:
        augmentation(train)
    except UserError as error:
        name = error.field.removeprefix("augmentation.")
        raise UserError(f"{stage}.{'crop_scale' if name == 'scale' else name}", error.value, error.valid) from None


def check_evaluator(evaluator: EvaluatorConfig, stage: str, where: str) -> None:
    """One entry of a stage's `evaluate` list; `where` names it."""
    choice(f"{where}.kind", evaluator.kind, EVALUATORS[stage])
    if evaluator.every < 0:
        raise UserError(f"{where}.every", evaluator.every, "steps, or 0: after training alone")
    for name in ("k", "temperature"):
        _above_0(f"{where}.{name}", getattr(evaluator, name))
    if evaluator.dataset:
        choice(f"{where}.dataset", evaluator.dataset, VARIANTS)
        choice(f"{where}.kind", evaluator.kind, ("classification",))
    if bool(evaluator.dataset) != bool(evaluator.path):
        both = {"dataset": evaluator.dataset, "path": evaluator.path}
        raise UserError(f"{where}.path", both, "the dataset's name and its path, or neither")
