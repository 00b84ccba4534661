"""What every stage of every arm does to its images and weights, side by side: what differs was not only the strategy.

Read from flat configs ("train.image_size": 224), those of a plan or those of collected runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One stage of one arm. `values` by setting; several of them are joined where sizes or variants differ."""

    stage: str
    arm: str
    values: dict[str, str]
    differing: frozenset[str]  # settings in which the arms that have this stage are not alike


def _resolution(config: Config) -> str:
    return f"{int(config['train.image_size'])} px"


def _augmentation(config: Config) -> str:
    """Crop and flip, then what labels and pixels go through; only what is on. A probe trains on nothing."""
    if config["stage"] == "probe":
        return ""
    scale = config["train.crop_scale"]
    low, high = json.loads(scale) if isinstance(scale, str) else scale
    crop = config["train.crop"]
    parts = [f"crop {low:g}-{high:g}" if crop == "random_resized" else f"crop {crop}"]
    parts += ["flip"] if config["train.flip"] else []
    parts += [str(config["train.randaugment"])] if config["train.randaugment"] else []
    for name, told in (("mixup", "mixup"), ("cutmix", "cutmix"), ("erasing", "erase"), ("label_smoothing", "smooth")):
        value = float(config[f"train.{name}"])
        parts += [f"{told} {value:g}"] if value else []
    return ", ".join(parts)


def _average(config: Config) -> str:
    share = float(config["train.ema"])
    return f"{share:g} of the steps" if share else "none"


def _directions(config: Config) -> str:
    return str(int(config["train.scan_directions"])) if config["encoder"] == "mamba" else ""


SETTINGS: dict[str, Callable[[Config], str]] = {
    "resolution": _resolution,
    "scan directions": _directions,
    "augmentation": _augmentation,
    "EMA": _average,
}


NEEDED = (
    "strategy", "encoder", "stage", "train.image_size", "train.scan_directions", "train.ema", "train.crop",
    "train.crop_scale", "train.flip", "train.randaugment", "train.mixup", "train.cutmix", "train.erasing",
    "train.label_smoothing",
)  # fmt: skip
"""Fields without which a config cannot be told; folders of other programs may lack them."""


def by_arm(configs: Iterable[Config]) -> list[Row]:
    """One row a stage and arm (strategy and encoder), in the order of the configs.

    A finetuning of what was already finetuned is a stage of its own.
    """
    found: dict[tuple[str, str], dict[str, dict[str, None]]] = {}
    for config in configs:
        key = (stage_of(config), f"{config['strategy']}-{config['encoder']}")
        values = found.setdefault(key, {name: {} for name in SETTINGS})
        for name, of in SETTINGS.items():
            values[name][of(config)] = None
    told = {key: {name: " or ".join(seen) for name, seen in values.items()} for key, values in found.items()}
    rows = []
    for stage, arm in sorted(told, key=lambda key: (_order(key[0]), list(told).index(key))):
        alike = {
            name: {values[name] for (other, _), values in told.items() if other == stage and values[name]}
            for name in SETTINGS
        }
        differing = frozenset(name for name, seen in alike.items() if len(seen) > 1)
        rows.append(Row(stage, arm, told[stage, arm], differing))
    return rows


def stage_of(config: Config) -> str:
    """The stage as people tell it apart."""
    again = config["stage"] == "finetune" and "-finetune-" in str(config.get("parent") or "")
    return "finetune again" if again else str(config["stage"])


def _order(stage: str) -> int:
    known = ("pretrain", "probe", "finetune", "finetune again")
    return known.index(stage) if stage in known else len(known)
