"""The trainer's own step on a resident batch: the engine of a real run, without data, logs and checkpoints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.build import build_objective, build_on_meta
from models.config import ARConfig, MAEConfig
from models.initialize import initialize
from models.mamba import CausalConv, SelectiveScan
from models.noise import Noise
from models.scan.backends import MODULES, obstacle
from models.scan.inputs import ScanInputs
from scaling.checks import check, choice
from scaling.config import PRETRAINED, STAGE_DEFAULTS, STRATEGIES, DeepSpeedConfig, FSDPConfig, ModelConfig, RunConfig
from scaling.engines import build_engine
from scaling.environment import Rank
from scaling.randomness import step_noise

CPU_SIZES = ("pico", "nano", "micro")
CLASSES = 1000


@dataclass(frozen=True)
class StepCase:
    """What to train, in the words of a run's config. pico to micro read 32 px in patches of 4, as in the quickstart."""

    strategy: str = "ar"
    encoder: str = "mamba"
    size: str = "base"
    stage: str = "pretrain"
    engine: str = "single"
    precision: str = "fp32"
    micro_batch: int = 8  # images per rank and forward
    accumulation: int = 1
    checkpointing: bool = False
    fsdp: FSDPConfig = dataclasses.field(default_factory=FSDPConfig)
    deepspeed: DeepSpeedConfig = dataclasses.field(default_factory=DeepSpeedConfig)

    def config(self, ranks: int = 1, *, compile: bool = False) -> RunConfig:
        """The run's config with the stage's recipe; UserError for what cannot be trained."""
        pretrained = choice("strategy", self.strategy, STRATEGIES) in PRETRAINED
        stage = choice("stage", self.stage, ("pretrain", "finetune") if pretrained else ("finetune",))
        batch = self.micro_batch * self.accumulation * ranks
        train = dataclasses.replace(
            STAGE_DEFAULTS[stage],
            images=1000 * batch,
            global_batch=batch,
            micro_batch=self.micro_batch,
            mix_group=self.micro_batch,  # a batch that stays on the device is mixed already
            lr=1e-4,
        )
        small = self.size in CPU_SIZES
        config = RunConfig(
            strategy=self.strategy,
            encoder=self.encoder,
            size=self.size,
            stage=self.stage,
            engine=self.engine,
            precision=self.precision,
            compile=compile,
            checkpointing=self.checkpointing,
            purpose="throughput",
            fsdp=self.fsdp,
            deepspeed=self.deepspeed,
            train=dataclasses.replace(train, image_size=32) if small else train,
            model=ModelConfig(patch_size=4) if small else ModelConfig(),
            ar=ARConfig(cluster_side=2, decoder_depth=2, decoder_width=64) if small else ARConfig(),
            mae=MAEConfig(decoder_depth=2, decoder_width=64, decoder_heads=1) if small else MAEConfig(),
        )
        check(config)
        return config


@dataclass(frozen=True)
class Inputs:
    """One micro-batch on the device, as the data and the randomness of a run would give it."""

    images: Tensor
    labels: Tensor | None
    noise: Noise


def resident_inputs(config: RunConfig, device: torch.device) -> Inputs:
    """Normal images; soft targets where the stage mixes, else class indices; the noise of the first positions."""
    train, encoder = config.train, config.encoder_config()
    micro = train.micro_batch or train.global_batch
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(micro, encoder.channels, encoder.image_size, encoder.image_size, generator=generator)
    labels = None
    if config.classifies:
        labels = torch.randint(CLASSES, (micro,), generator=generator)
        if train.mixup or train.cutmix or train.label_smoothing:
            labels = nn.functional.one_hot(labels, CLASSES).float()
    masked = encoder.patches if isinstance(config.objective_config(CLASSES), MAEConfig) else 0
    dropped = encoder.depth if train.drop_path else 0
    noise = step_noise(0, config.stage, torch.arange(micro), tokens=masked, depth=dropped)
    return Inputs(images.to(device), None if labels is None else labels.to(device), noise.to(device))


def use_backend(objective: nn.Module, name: str) -> None:
    """All scans by the backend `name`, and the convolutions too where it has one that works here."""
    conv = name if name in MODULES["causal_conv1d"] and not obstacle("causal_conv1d", name) else "auto"
    for module in objective.modules():
        if isinstance(module, SelectiveScan):
            module.backend = name
        elif isinstance(module, CausalConv):
            module.backend = conv


class Trainer:
    """A model under an engine. `step` is the body of the loop of scaling.train, nothing read back."""

    def __init__(self, config: RunConfig, rank: Rank, backend: str = "auto") -> None:
        self.engine = build_engine(config, rank)
        objective = build_on_meta(config.encoder_config(), config.objective_config(CLASSES))
        use_backend(objective, backend)
        self.engine.prepare(objective, 1000, lambda objective: initialize(objective, config.seed))
        self.inputs = resident_inputs(config, self.engine.device)
        self.accumulation = config.train.global_batch // rank.ranks // len(self.inputs.images)

    def warm_up(self) -> None:
        """The steps that compile, make the moments and, where passes are recorded, come before their first replay."""
        for _ in range(2 if self.engine.captured is None else self.engine.captured.eager + 1):
            self.step()

    def step(self) -> Tensor:
        """The gradient norm, on the device."""
        inputs = self.inputs
        for micro in range(self.accumulation):
            last = micro == self.accumulation - 1
            loss, _ = self.engine.forward(inputs.images, inputs.labels, inputs.noise, last=last)
            self.engine.backward(loss / self.accumulation)
        return self.engine.step(1e-6)


def scan_calls(config: RunConfig, device: torch.device) -> tuple[ScanInputs | None, int]:
    """What the scan of the last block is given in a step of this config, and how many scans a forward pass has."""
    objective = build_objective(config.encoder_config(), config.objective_config(CLASSES), device=device)
    scans = [module for module in objective.modules() if isinstance(module, SelectiveScan)]
    if not scans:
        return None, 0
    caught: list[ScanInputs] = []

    def catch(scan: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(scan, SelectiveScan)
        x, dt, B, C, z, order = arguments
        caught.append(ScanInputs(x, dt, -torch.exp(scan.A_log), B, C, scan.D, z, scan.dt_bias, True, order))

    scans[-1].register_forward_pre_hook(catch)
    inputs = resident_inputs(config, device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        objective(inputs.images, inputs.labels, inputs.noise)
    return caught[0], len(scans)
