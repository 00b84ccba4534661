"""The config of one run: frozen dataclasses, whose defaults are the official recipe, and what follows from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from data.config import Augmentation
from models.config import ARConfig, EncoderConfig, MAEConfig, ObjectiveConfig, SupervisedConfig
from models.ladder import SIZES

SCHEMA = 1
"""Version of these defaults. A run's identity hashes what differs; a changed default needs a new version."""

STRATEGIES = ("ar", "mae", "supervised", "scratch")
PRETRAINED = ("ar", "mae")
"""Strategies that begin with a pretraining."""
STAGES = ("pretrain", "finetune", "probe")
ENGINES = ("single", "ddp", "fsdp", "deepspeed")
ZERO_STAGES = (1, 2, 3)  # stage 0 is `ddp`
ZERO_BUCKET = 50_000_000  # elements reduced or gathered at once; DeepSpeed's default takes ten times the memory
PRECISIONS = ("fp32", "bf16")
PARAMETRISATIONS = ("standard", "mup")
PURPOSES = ("accuracy", "throughput")
SCHEDULES = ("cosine", "wsd")
EVALUATORS = {
    "pretrain": ("pretrain_loss", "knn", "linear_probe", "reconstruction", "throughput"),
    "finetune": ("classification", "knn", "linear_probe", "throughput"),
    "probe": ("linear_probe", "knn"),
}
"""Kinds of evaluators that a stage may have; scaling/evaluate says what each does."""
VARIANTS = ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-real")
"""Test sets that ask an ImageNet classifier for its own classes; scaling/evaluate/imagenet.py has their rules."""


@dataclass(frozen=True)
class DataConfig:
    """Where the shards are. `source` lets `study plan` state sizes before anything is packed."""

    shards: str = ""
    source: str = ""
    workers: int = 0
    lanes: int = 64
    held_out: float = (
        0.0  # fraction of the training images that is left out and evaluated in the place of the test split
    )


@dataclass(frozen=True)
class ModelConfig:
    """What the size does not fix, and what may override it (null: as the ladder has it)."""

    depth: int | None = None
    width: int | None = None
    patch_size: int = 16
    parametrisation: str = "standard"  # or mup: one learning rate for all widths (Yang et al. 2021, arXiv 2203.03466)
    base_width: int = 192  # mup: the width at which it is the standard parametrisation, where rates are tuned


@dataclass(frozen=True)
class EvaluatorConfig:
    """One entry of a stage's `evaluate` list. It runs after training and, if `every` is above 0, during it."""

    kind: str = "classification"
    every: int = 0  # steps between two evaluations during training; 0: after it alone
    dataset: str = ""  # classification: one of VARIANTS instead of the run's own test split
    path: str = ""  # its packed shards, or the file of labels of imagenet-real
    k: int = 20  # knn: neighbours that vote (Caron et al. 2021, DINO, appendix F)
    temperature: float = 0.07  # knn: of their votes (as above)


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
    decay: float = 0.1  # wsd: fraction of the steps over which the rate falls
    branches: tuple[int, ...] = ()  # wsd: images after which decays branch off; this stage is then their trunk
    branched_at: int | None = None  # images after which this stage left its parent, the trunk whose state it continues
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
    evaluate: list[EvaluatorConfig] = field(
        default_factory=lambda: [EvaluatorConfig("pretrain_loss"), EvaluatorConfig("reconstruction")]
    )
    log_every: int = 10  # steps
    checkpoint_every: int = 1000  # steps
    keep_checkpoints: int = 2  # the newest
    keep_every: int = 0  # steps; besides, one checkpoint of every so many is kept for branching off; 0: none


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
    evaluate=[EvaluatorConfig("classification")],
)
PROBE = TrainConfig(images=0, lr=0.0, evaluate=[EvaluatorConfig("linear_probe"), EvaluatorConfig("knn")])
"""Trains nothing: the evaluators read the features of the parent, or of random weights where there is none."""
STAGE_DEFAULTS = {"pretrain": PRETRAIN, "finetune": FINETUNE, "probe": PROBE}
PROTOCOLS = {"pretrain": "pretrain_loss", "finetune": "finetune", "probe": "linear_probe"}
"""How the number was obtained that sums up a stage."""


@dataclass(frozen=True)
class FSDPConfig:
    """How the engine `fsdp` spreads the model."""

    replicas: int = 1  # groups of ranks that each hold the whole model between them; above 1: HSDP
    reshard_after_forward: bool = True  # false: blocks stay gathered from forward to backward, memory for traffic
    offload: bool = False  # weights, gradients and moments in the memory of the CPU, where the update runs too


@dataclass(frozen=True)
class DeepSpeedConfig:
    """How the engine `deepspeed` spreads the model (ZeRO)."""

    stage: int = 2  # partitioned over ranks: 1 master weights and moments, 2 the gradients too, 3 all weights too
    offload: bool = False  # master weights and moments in the memory of the CPU, where the update runs too


@dataclass(frozen=True)
class FaultsConfig:
    """What a run puts up with. A step is bad whose loss or gradient norm is not finite, or whose loss is a spike."""

    bad_steps: int = 5  # bad steps in a row, after which the run goes back to its last checkpoint and leaves them out
    spike: float = 10.0  # deviations above the median of the last losses from which on a loss is a spike; 0: never
    rollbacks: int = 3  # at most, then the run fails
    step_timeout: float = 500.0  # seconds for a step, first compile included, below NCCL's own 600; 0: no limit
    timing_every: int = 50  # steps between two comparisons of the ranks' times


@dataclass(frozen=True)
class ResourcesConfig:
    """What one run asks of the cluster."""

    nodes: int = 1
    gpus_per_node: int = 1
    time: str = "04:00:00"
    grace: float = 120.0  # seconds from a stop signal to the kill; so long before the time limit the run stops

    @property
    def ranks(self) -> int:
        """Of the run on a cluster, one a GPU."""
        return self.nodes * self.gpus_per_node


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
    compile: bool = False  # on a GPU, single and ddp then replay their passes as CUDA graphs, which keep their memory
    checkpointing: bool = False  # of activations
    fsdp: FSDPConfig = field(default_factory=FSDPConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    ar: ARConfig = field(default_factory=ARConfig)
    mae: MAEConfig = field(default_factory=MAEConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)

    @property
    def classifies(self) -> bool:
        """Whether the stage trains a classifier."""
        return self.stage == "finetune"

    @property
    def labelled(self) -> bool:
        """Whether the stage needs labels, and test images to be judged by."""
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
            base_width=self.model.base_width if self.model.parametrisation == "mup" else None,
        )

    def objective_config(self, classes: int) -> ObjectiveConfig:
        """The objective of this stage; `classes` matters to classification alone.

        A probe reads the module that was pretrained; where nothing was, an encoder under a head that has no part in it.
        """
        if self.classifies or self.strategy not in PRETRAINED:
            # A transferred encoder starts under a nearly silent head (sheet 1.6).
            return SupervisedConfig(
                classes=classes, pooling=self.train.pooling, head_std=2e-5 if self.parent is not None else 0.02
            )
        return self.ar if self.strategy == "ar" else self.mae


def augmentation(train: TrainConfig) -> Augmentation:
    """What the stage does to its images, as the data room takes it."""
    names = {item.name for item in dataclasses.fields(Augmentation)} - {"scale"}
    return Augmentation(scale=train.crop_scale, **{name: getattr(train, name) for name in names})


def stage_images(train: TrainConfig, samples: int | None) -> int | None:
    """Images of the stage, whole optimiser steps; None where epochs are given and the data set's size is unknown.

    Of a stage that branched off a trunk, the trunk's images before the branch are among them.
    """
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
