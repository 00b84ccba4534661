"""The config of one run: dataclasses merged as defaults < YAML < key=value, checked before any work starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.config import Augmentation
from models.config import ENCODERS, ARConfig, EncoderConfig, MAEConfig, ObjectiveConfig, SupervisedConfig
from models.config import check as check_model
from models.ladder import SIZES
from scaling.errors import UserError

SCHEMA = 1
"""Version of these defaults. A run's identity hashes what differs; a changed default needs a new version."""

STRATEGIES = ("ar", "mae", "supervised", "scratch")
STAGES = ("pretrain", "finetune")
ENGINES = ("single", "ddp", "fsdp")
PRECISIONS = ("fp32", "bf16")
PURPOSES = ("accuracy", "throughput")
SCHEDULES = ("cosine",)


@dataclass(frozen=True)
class DataConfig:
    """Where the shards are. `source` lets `study plan` state sizes before anything is packed."""

    shards: str = ""
    source: str = ""
    workers: int = 0
    lanes: int = 64


@dataclass(frozen=True)
class ModelConfig:
    """What the size does not fix, and what may override it (null: as the ladder has it)."""

    depth: int | None = None
    width: int | None = None
    patch_size: int = 16


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training. Exactly one of images and epochs, and one of lr and base_lr, is given.

    Recipe numbers are those of the official pretraining script (sheet, section 2); `FINETUNE` has section 3.
    """

    images: int | None = None  # images seen over the stage, all ranks together
    epochs: float | None = None
    global_batch: int = 2048  # images per optimiser step over all ranks
    micro_batch: int | None = None  # images per rank and forward; null: global_batch / ranks
    image_size: int = 192
    scan_directions: int = 1
    class_token: bool = False
    pooling: str = "mean"
    drop_path: float = 0.0
    lr: float | None = None  # peak; base_lr is scaled by global_batch / 256
    base_lr: float | None = None
    min_lr: float = 0.0
    warmup: float = 0.025  # fraction of the steps (40 of 1600 epochs)
    schedule: str = "cosine"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 3.0  # global gradient norm; 0: off
    layer_decay: float = 1.0
    ema: float = 0.0  # time constant of the weights' average as a fraction of the steps; 0: off
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_group: int = 16
    randaugment: str = ""
    erasing: float = 0.0
    crop: str = "random_resized"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    eval_resize: str = "square"
    eval_batch: int = 256
    log_every: int = 10  # steps
    checkpoint_every: int = 1000  # steps
    keep_checkpoints: int = 2


PRETRAIN = TrainConfig()
FINETUNE = TrainConfig(
    global_batch=1024,
    image_size=224,
    scan_directions=4,
    class_token=True,
    drop_path=0.1,
    min_lr=1e-6,
    warmup=0.05,  # 5 of 100 epochs
    betas=(0.9, 0.999),
    clip=0.0,
    layer_decay=0.65,
    ema=0.1,  # 12,500 of 125,000 steps
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    randaugment="rand-m9-mstd0.5-inc1",
    erasing=0.25,
    crop_scale=(0.08, 1.0),
)
STAGE_DEFAULTS = {"pretrain": PRETRAIN, "finetune": FINETUNE}


@dataclass(frozen=True)
class FSDPConfig:
    """How the engine `fsdp` spreads the model."""

    replicas: int = 1  # groups of ranks that each hold the whole model between them; above 1: HSDP
    reshard_after_forward: bool = True  # false: blocks stay gathered from forward to backward, memory for traffic
    offload: bool = False  # weights, gradients and moments in the memory of the CPU, where the update runs too


@dataclass(frozen=True)
class ResourcesConfig:
    """What one run asks of the cluster."""

    nodes: int = 1
    gpus_per_node: int = 1
    time: str = "04:00:00"


@dataclass(frozen=True)
class RunConfig:
    """One run: one stage of training in one folder. `parent` is the id of the run whose weights it starts from."""

    schema: int = SCHEMA
    study: str = ""
    run: str = ""
    strategy: str = "ar"
    encoder: str = "mamba"
    size: str = "base"
    stage: str = "pretrain"
    seed: int = 0
    parent: str | None = None
    purpose: str = "accuracy"
    engine: str = "single"
    precision: str = "fp32"
    compile: bool = False
    checkpointing: bool = False  # of activations
    fsdp: FSDPConfig = field(default_factory=FSDPConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    ar: ARConfig = field(default_factory=ARConfig)
    mae: MAEConfig = field(default_factory=MAEConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)

    @property
    def classifies(self) -> bool:
        """Whether the stage needs labels."""
        return self.stage != "pretrain"

    def encoder_config(self) -> EncoderConfig:
        """The encoder of this stage."""
        size = SIZES[self.size]
        learned = self.classifies  # the table is trained in finetuning only (sheet 1.5)
        return EncoderConfig(
            encoder=self.encoder,
            depth=self.model.depth or size.depth,
            width=self.model.width or size.width,
            image_size=self.train.image_size,
            patch_size=self.model.patch_size,
            scan_directions=self.train.scan_directions if self.encoder == "mamba" else 1,
            positions="learned" if learned else "sincos",
            class_token=self.train.class_token,
            drop_path=self.train.drop_path,
        )

    def objective_config(self, classes: int) -> ObjectiveConfig:
        """The objective of this stage; `classes` matters to classification alone."""
        if self.classifies:
            # A transferred encoder starts under a nearly silent head (sheet 1.6).
            return SupervisedConfig(
                classes=classes, pooling=self.train.pooling, head_std=2e-5 if self.parent is not None else 0.02
            )
        return self.ar if self.strategy == "ar" else self.mae


def merge(schema: Any, given: Any, overrides: list[str] | None = None) -> Any:
    """An object of the dataclass `schema` (an instance gives the defaults) with `given` and key=value laid over it.

    Unknown keys and values of the wrong type raise UserError naming them.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(given))
    except OmegaConfBaseException as error:
        raise _explained(error, schema) from None
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError("argument", override, "key=value, as in train.lr=1e-3")
        try:
            change = OmegaConf.create({})
            OmegaConf.update(change, key, yaml.safe_load(value))
            merged = OmegaConf.merge(merged, change)
        except OmegaConfBaseException as error:
            raise _explained(error, schema) from None
        except yaml.YAMLError:
            raise UserError(key, value, "a YAML value") from None
    return OmegaConf.to_object(merged)


def _explained(error: OmegaConfBaseException, schema: Any) -> UserError:
    """OmegaConf's error as ours: which key, what it was, what could stand there."""
    name = error.full_key or error.key or "config"
    valid = _valid_keys(schema, str(name))
    message = str(error.msg or error).splitlines()[0]
    if valid and str(name).rpartition(".")[2] not in valid:
        return UserError("field", str(name), valid, why="no such field")
    return UserError(str(name), error.value if error.value is not None else "", message)


def _valid_keys(schema: Any, name: str) -> list[str]:
    """The fields of the section that `name` (dotted) lies in."""
    node: Any = schema() if isinstance(schema, type) else schema
    for part in name.split(".")[:-1]:
        node = getattr(node, part, None)
    return [item.name for item in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError("file", str(path), "a readable YAML file", why=error.strerror or "") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError("file", str(path), "YAML", why=" ".join(str(error).split())) from None
    if not isinstance(value, dict):
        raise UserError("file", str(path), "a mapping of fields at its top")
    return value


def load_run(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """The run config in `path` with key=value overrides, checked."""
    given = load_yaml(path)
    stage = choice("stage", given.get("stage", "pretrain"), STAGES)
    config: RunConfig = merge(
        dataclasses.replace(RunConfig(), stage=stage, train=STAGE_DEFAULTS[stage]), given, overrides
    )
    if config.schema != SCHEMA:
        raise UserError("schema", config.schema, str(SCHEMA), why="written by another version of armscale")
    check(config)
    return config


def dump(config: Any) -> str:
    """YAML of a config, every field in the order of its dataclass."""
    tree = OmegaConf.to_container(DictConfig(OmegaConf.structured(config)))
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def choice(name: str, value: Any, valid: Any) -> Any:
    """`value` if it is one of `valid`."""
    if value not in valid:
        raise UserError(name, value, valid)
    return value


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(name, value, f"from {low:g} to {high:g}")


def check(config: RunConfig) -> None:
    """Raises UserError for the first field that cannot work, before anything is started."""
    choice("strategy", config.strategy, STRATEGIES)
    choice("encoder", config.encoder, ENCODERS)
    choice("size", config.size, tuple(SIZES))
    choice("stage", config.stage, STAGES)
    choice("purpose", config.purpose, PURPOSES)
    choice("engine", config.engine, ENGINES)
    choice("precision", config.precision, PRECISIONS)
    if config.stage == "pretrain" and config.strategy not in ("ar", "mae"):
        raise UserError("stage", config.stage, ("finetune",), why=f"strategy {config.strategy} has no pretraining")
    if config.fsdp.replicas < 1:
        raise UserError("fsdp.replicas", config.fsdp.replicas, "numbers above 0")
    _check_train(config.train, config.stage)
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
    for name in ("images", "epochs", "global_batch", "micro_batch", "lr", "base_lr", "eval_batch", "log_every"):
        value = getattr(train, name)
        if value is not None and value <= 0:
            raise UserError(f"{stage}.{name}", value, "numbers above 0")
    if train.images is not None and train.images < train.global_batch:
        raise UserError(f"{stage}.images", train.images, f"at least one global_batch ({train.global_batch})")
    if train.micro_batch is not None and train.global_batch % train.micro_batch:
        raise UserError(f"{stage}.micro_batch", train.micro_batch, f"divisors of global_batch ({train.global_batch})")
    for name in ("warmup", "ema", "layer_decay"):
        _between(f"{stage}.{name}", getattr(train, name), 0.0, 1.0)
    choice(f"{stage}.schedule", train.schedule, SCHEDULES)
    try:
        augmentation(train)
    except UserError as error:
        name = error.field.removeprefix("augmentation.")
        raise UserError(f"{stage}.{'crop_scale' if name == 'scale' else name}", error.value, error.valid) from None


def augmentation(train: TrainConfig) -> Augmentation:
    """What the stage does to its images, as the data room takes it."""
    names = {item.name for item in dataclasses.fields(Augmentation)} - {"scale"}
    return Augmentation(scale=train.crop_scale, **{name: getattr(train, name) for name in names})


def stage_images(train: TrainConfig, samples: int | None) -> int | None:
    """Images of the stage, whole optimiser steps; None where epochs are given and the data set's size is unknown."""
    if train.images is not None:
        return train.images // train.global_batch * train.global_batch
    if samples is None or train.epochs is None:
        return None
    return max(1, int(train.epochs * samples) // train.global_batch) * train.global_batch


def peak_lr(train: TrainConfig) -> float:
    """Learning rate at the top of the schedule; the linear rule of the official scripts, base_lr x batch / 256."""
    if train.lr is not None:
        return train.lr
    assert train.base_lr is not None
    return train.base_lr * train.global_batch / 256
