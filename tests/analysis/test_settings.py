"""Settings by arm: what is told of a config, and what is marked as differing."""

from __future__ import annotations

import dataclasses
from typing import Any

from analysis.settings import NEEDED, SETTINGS, by_arm
from scaling.config import FINETUNE, PRETRAIN, RunConfig
from scaling.study.identity import flatten


def config(
    strategy: str, stage: str, encoder: str = "mamba", parent: str | None = None, **train: Any
) -> dict[str, Any]:
    recipe = PRETRAIN if stage == "pretrain" else FINETUNE
    run = RunConfig(strategy=strategy, encoder=encoder, stage=stage, parent=parent)
    return flatten(dataclasses.replace(run, train=dataclasses.replace(recipe, **train)))


def test_arms_that_differ_are_marked() -> None:
    rows = by_arm([
        config("ar", "pretrain"),
        config("ar", "finetune", parent="ar-mamba-base-pretrain-s0-1"),
        config("mae", "pretrain", image_size=224, scan_directions=4),
        config("mae", "finetune", ema=0.0, parent="mae-mamba-base-pretrain-s0-1"),
        config("ar", "finetune", parent="ar-mamba-base-finetune-s0-1", image_size=384),
    ])  # fmt: skip
    assert [(row.stage, row.arm) for row in rows] == [
        ("pretrain", "ar-mamba"), ("pretrain", "mae-mamba"), ("finetune", "ar-mamba"), ("finetune", "mae-mamba"),
        ("finetune again", "ar-mamba"),
    ]  # fmt: skip
    assert [sorted(row.differing) for row in rows] == [["resolution", "scan directions"]] * 2 + [["EMA"]] * 2 + [[]]
    assert rows[1].values == {
        "resolution": "224 px", "scan directions": "4", "augmentation": "crop 0.2-1, flip", "EMA": "none",
    }  # fmt: skip
    told = "crop 0.08-1, flip, rand-m9-mstd0.5-inc1, mixup 0.8, cutmix 1, erase 0.25, smooth 0.1"
    assert (rows[2].values["augmentation"], rows[2].values["EMA"]) == (told, "0.1 of the steps")


def test_a_vit_does_not_scan() -> None:
    """Its empty setting is no difference to a Mamba's; within an arm, variants are joined."""
    rows = by_arm(
        [config("ar", "pretrain"), config("ar", "pretrain", encoder="vit"), config("ar", "pretrain", flip=False)]
    )
    assert [row.values["scan directions"] for row in rows] == ["1", ""]
    assert rows[0].values["augmentation"] == "crop 0.2-1, flip or crop 0.2-1"
    assert all("scan directions" not in row.differing for row in rows)


def test_what_is_read_is_what_is_asked_for() -> None:
    """NEEDED names every field that the settings read, and collected lists are text."""
    full = config("ar", "finetune")
    least = {name: full[name] for name in NEEDED} | {"train.crop_scale": "[0.08, 1.0]"}
    assert by_arm([least])[0].values == by_arm([full])[0].values
    assert set(by_arm([least])[0].values) == set(SETTINGS)
