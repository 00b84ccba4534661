"""Recipes against the fact sheet: both are read, and every number that the sheet publishes is compared."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaling.config import RunConfig, TrainConfig, peak_lr
from scaling.errors import UserError
from scaling.study.chains import runs
from scaling.study.recipe import PACKAGED, load_recipe
from scaling.study.table import Study, load_study
from tests.conftest import SHARED, need

SHEET = SHARED / "reference" / "arm.md"
IMAGES = 1_281_167  # of ImageNet-1K's training split
NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"


@cache
def section(number: int) -> str:
    """The text of one numbered section of the sheet."""
    need("sheet", SHEET.is_file(), "the fact sheet is not beside the checkout")
    parts = re.split(r"^## (\d+)\. ", SHEET.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[str(number)]


def cell(number: int, row: str, column: int = 1) -> str:
    """A cell of the first table in a section: its row by the first column's text, its column by number."""
    for line in section(number).splitlines():
        cells = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] == row:
            return cells[column]
    raise AssertionError(f"section {number} has no row {row}")


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(NUMBER, text)]


def after(number: int, phrase: str) -> float:
    """The number that follows `phrase` in a section's text."""
    found = re.search(re.escape(phrase) + rf"\s*({NUMBER})", section(number))
    assert found, phrase
    return float(found[1])


@cache
def stages(recipes: tuple[str, ...], strategy: str, encoder: str, size: str) -> dict[str, RunConfig]:
    """The runs that recipes alone give for one cell, by stage; finetune_384 is the further finetuning."""
    axes: dict[str, list[Any]] = {"strategy": [strategy], "encoder": [encoder], "size": [size]}
    blocks = [block for name in recipes for block in load_recipe(name)]
    found = runs(Study("x", "accuracy", RunConfig().data, blocks, {}, axes, [], [], None, None, None, {}, {}), "f")
    return {run.run.rsplit("-s0-", 1)[0].split(f"{size}-")[1].replace("-", "_"): run for run in found}


def train(recipe: str, strategy: str, encoder: str, size: str, stage: str) -> TrainConfig:
    return stages((recipe,), strategy, encoder, size)[stage].train


def warmup_epochs(config: TrainConfig) -> float:
    assert config.epochs is not None
    return round(config.warmup * config.epochs, 6)


def ema_steps(config: TrainConfig) -> float:
    """The time constant of the average in steps on ImageNet-1K."""
    assert config.epochs is not None
    return config.ema * config.epochs * IMAGES / config.global_batch


def steps_of(decay: float) -> Any:
    """Time constant of a decay a step, to the accuracy that the config's fraction of the run has."""
    return pytest.approx(1 / (1 - decay), rel=3e-3)


def compare(*rows: tuple[str, Any, Any]) -> None:
    """(name, the recipe's value, the sheet's) by row; all that differ are told at once."""
    assert len(rows) == len({name for name, _, _ in rows})
    assert [(name, ours) for name, ours, _ in rows] == [(name, sheet) for name, _, sheet in rows]


def test_arm_pretraining() -> None:
    base, large = (train("arm", "ar", "mamba", size, "pretrain") for size in ("base", "large"))
    run = stages(("arm",), "ar", "mamba", "base")["pretrain"]
    rates = cell(2, "lr").split("->")
    compare(
        ("epochs", base.epochs, numbers(cell(2, "epochs"))[0]),
        ("warmup", warmup_epochs(base), numbers(cell(2, "schedule"))[0]),
        ("image", base.image_size, after(2, "RandomResizedCrop")),
        ("scale", list(base.crop_scale), numbers(cell(2, "augmentation").split("scale")[1])[:2]),
        ("betas", list(base.betas), numbers(cell(2, "optimiser"))[:2]),
        ("weight decay", base.weight_decay, numbers(cell(2, "optimiser"))[2]),
        ("blr", base.base_lr, numbers(rates[0])[0]),
        ("base batch", base.global_batch, after(2, "README base: batch")),
        ("base lr", pytest.approx(peak_lr(base)), numbers(rates[1])[0]),
        ("large batch", large.global_batch, after(2, "large: batch")),
        ("large lr", pytest.approx(peak_lr(large)), numbers(rates[2])[0]),
        ("clip", base.clip, numbers(cell(2, "clip"))[0]),
        ("off", [base.drop_path == 0, base.ema == 0], ["none" in cell(2, "drop path / dropout / EMA")] * 2),
        ("precision", run.precision, cell(2, "precision")[:4]),
        ("patch", run.model.patch_size, after(2, "patch")),
        ("cluster", run.ar.cluster_side, after(2, "cluster")),
        ("decoder", [run.ar.decoder_depth, run.ar.decoder_width], numbers(section(4).split("| decoder | ")[1])[:2]),
    )


@pytest.mark.parametrize(("size", "column"), [("base", 1), ("large", 2)])
def test_arm_finetuning_by_size(size: str, column: int) -> None:
    found = train("arm", "ar", "mamba", size, "finetune")
    compare(
        ("epochs", found.epochs, numbers(cell(3, "epochs", column))[0]),
        ("batch", found.global_batch, numbers(cell(3, "batch", column))[-1]),
        ("blr", found.base_lr, numbers(cell(3, "blr -> lr", column))[0]),
        ("lr", pytest.approx(peak_lr(found)), numbers(cell(3, "blr -> lr", column))[1]),
        ("layer decay", found.layer_decay, numbers(cell(3, "layer decay", column))[0]),
        ("drop path", found.drop_path, numbers(cell(3, "drop path", column))[0]),
        ("EMA", ema_steps(found), steps_of(numbers(cell(3, "EMA decay", column))[0])),
    )


def test_arm_finetuning_in_common() -> None:
    found = train("arm", "ar", "mamba", "base", "finetune")
    strength = re.search(r"RandAugment (\S+),", section(3))
    assert strength
    compare(
        ("betas", list(found.betas), numbers(section(3).split("AdamW betas")[1])[:2]),
        ("weight decay", found.weight_decay, after(3, "weight decay")),
        ("warmup", warmup_epochs(found), after(3, "warmup")),
        ("floor", found.min_lr, after(3, "half-cosine to")),
        ("clip", found.clip == 0, "no clip" in section(3)),
        ("randaugment", found.randaugment, f"rand-{strength[1]}"),
        ("erasing", found.erasing, after(3, "random erasing")),
        ("mixup", found.mixup, after(3, "mixup")),
        ("cutmix", found.cutmix, after(3, "cutmix")),
        ("smoothing", found.label_smoothing, after(3, "label smoothing")),
        ("resolution", found.image_size, after(3, "soft-target cross-entropy),")),
        ("scale", list(found.crop_scale), numbers(section(3).split("library-default scale")[1])[:2]),
        ("square resize", found.eval_resize == "square", "exactly 256x256" in section(3)),
        ("directions", found.scan_directions == 4, "and 1 -> 4 scans" in section(3)),
    )


def test_mae_pretraining() -> None:
    run = stages(("mae",), "mae", "vit", "base")["pretrain"]
    found, decoder = run.train, run.mae
    compare(
        ("batch", found.global_batch, numbers(cell(7, "batch"))[0]),
        ("blr", found.base_lr, numbers(cell(7, "lr"))[0]),
        ("betas", list(found.betas), numbers(cell(7, "optimiser"))[:2]),
        ("weight decay", found.weight_decay, numbers(cell(7, "weight decay"))[0]),
        ("epochs", found.epochs, numbers(cell(7, "epochs, warmup"))[0]),
        ("warmup", warmup_epochs(found), numbers(cell(7, "epochs, warmup"))[-1]),
        ("floor", found.min_lr, numbers(cell(7, "floor lr"))[0]),
        ("drop path", found.drop_path, numbers(cell(7, "drop path"))[0]),
        ("scale", list(found.crop_scale), numbers(cell(7, "augmentation"))[:2]),
        ("clip", found.clip == 0, "no clip" in cell(7, "precision")),
        ("EMA", found.ema == 0, cell(7, "EMA") == "no"),
        ("mask", decoder.mask_ratio, after(7, "MAE model: mask")),
        ("decoder depth", decoder.decoder_depth, after(7, "decoder")),
        ("decoder width", decoder.decoder_width, after(7, "blocks, width")),
        ("decoder heads", decoder.decoder_heads, after(7, "width 512,")),
    )


@pytest.mark.parametrize(("size", "place"), [("base", 0), ("large", 1), ("huge", 2)])
def test_mae_finetuning(size: str, place: int) -> None:
    found = train("mae", "mae", "vit", size, "finetune")
    mixing = (int(found.randaugment[6]), found.mixup, found.cutmix, found.erasing, found.label_smoothing)
    compare(
        ("epochs", found.epochs, numbers(cell(7, "epochs, warmup", 2))[place]),
        ("warmup", warmup_epochs(found), numbers(cell(7, "epochs, warmup", 2))[-1]),
        ("batch", found.global_batch, numbers(cell(7, "batch", 2))[0]),
        ("blr", found.base_lr, numbers(cell(7, "lr", 2))[place]),
        ("drop path", found.drop_path, numbers(cell(7, "drop path", 2))[place]),
        ("layer decay", found.layer_decay, numbers(cell(7, "layer decay", 2))[place]),
        ("betas", list(found.betas), numbers(cell(7, "optimiser", 2))[:2]),
        ("weight decay", found.weight_decay, numbers(cell(7, "weight decay", 2))[0]),
        ("floor", found.min_lr, numbers(cell(7, "floor lr", 2))[0]),
        ("mixing", mixing, tuple(numbers(cell(7, "augmentation", 2)))),
        ("EMA", found.ema == 0, cell(7, "EMA", 2) == "no"),
    )


@pytest.mark.parametrize(("encoder", "column", "place"), [("vit", 3, 0), ("mamba", 4, 1)])
def test_supervised(encoder: str, column: int, place: int) -> None:
    """DeiT-B, and Vim-S where the sheet gives Ti and S."""
    found = train("supervised", "supervised", encoder, "base", "finetune")
    compare(
        ("batch", found.global_batch, numbers(cell(7, "batch", column))[place]),
        ("drop path", found.drop_path, numbers(cell(7, "drop path", column))[place]),
        ("epochs", found.epochs, numbers(cell(7, "epochs, warmup", column))[0]),
        ("warmup", warmup_epochs(found), numbers(cell(7, "epochs, warmup", column))[-1]),
        ("lr", pytest.approx(peak_lr(found)), numbers(cell(7, "lr", column).split("(=")[1])[0]),
        ("floor", found.min_lr, numbers(cell(7, "floor lr", column))[0]),
        ("weight decay", found.weight_decay, numbers(cell(7, "weight decay", column))[place]),
    )


def test_supervised_vit_alone() -> None:
    found = train("supervised", "supervised", "vit", "base", "finetune")
    compare(
        ("batch", found.global_batch, numbers(cell(7, "batch", 3))[0]),
        ("drop path", found.drop_path, numbers(cell(7, "drop path", 3))[0]),
        ("EMA", ema_steps(found), steps_of(numbers(cell(7, "EMA", 3))[0])),
    )


def test_what_nobody_published_is_ours() -> None:
    """Numbers of huge and of 384 px have the source `ours`, and the sheet indeed gives none."""
    assert cell(3, "epochs", 3) == "not given"
    assert "No 384 recipe is published" in section(3)
    assert {block.source for block in load_recipe("arm_384")} == {"ours"}
    of_huge = [block for block in load_recipe("arm") if block.when.get("size") == "huge"]
    assert {block.source for block in of_huge} == {"ours"}
    changed = {field for block in of_huge for field in block.set}
    assert changed == {"pretrain.global_batch", "finetune.layer_decay", "finetune.drop_path"}


@pytest.mark.parametrize("path", sorted(PACKAGED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_number_has_a_source(path: Path) -> None:
    for block in load_recipe(path.stem):
        assert len(yaml.safe_load(path.read_text())["sources"][block.source]) > 10
        assert block.set


def test_384_is_a_child_of_the_224_finetuning() -> None:
    found = stages(("arm", "arm_384"), "ar", "mamba", "base")
    assert list(found) == ["pretrain", "finetune", "finetune_384"]
    last = found["finetune_384"]
    assert (last.stage, last.parent, last.train.image_size) == ("finetune", found["finetune"].run, 384)
    assert found["finetune"].parent == found["pretrain"].run
    assert list(stages(("arm",), "ar", "mamba", "base")) == ["pretrain", "finetune"]
    assert list(stages(("supervised", "arm_384"), "supervised", "mamba", "base")) == ["finetune", "finetune_384"]


def test_defaults_of_a_study_lie_over_its_recipes(tmp_path: Path) -> None:
    """Images take the place of a recipe's epochs, and lr that of base_lr; what is not named stays."""
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({
        "name": "over", "data": {"shards": "x"}, "recipes": ["arm"], "axes": {"strategy": ["ar"], "size": ["large"]},
        "defaults": {"pretrain": {"images": 20480}, "finetune.lr": 1e-3},
    }))  # fmt: skip
    pretraining, finetuning = (run.train for run in runs(load_study(study), "f"))
    assert (pretraining.images, pretraining.epochs, pretraining.global_batch) == (20480, None, 1024)
    assert (finetuning.lr, finetuning.base_lr, finetuning.layer_decay) == (1e-3, None, 0.75)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sources: {ours: us}\nblocks: [{when: {}, set: {}, source: paper}]", "paper"),
        ("sources: {ours: us}\nblocks: [{when: {}, set: {}, source: ours}]", "why"),
        ("sources: {ours: us}\nblocks: [{when: {}, source: ours}]", "when, set, source"),
        ("sources: {paper: it}\nblocks: [{when: pico, set: {}, source: paper}]", r"mine\.blocks\[0\]\.when: 'pico'"),
        ("sources: {paper: it}\nblocks: [{when: {}, set: null, source: paper}]", r"mine\.blocks\[0\]\.set: None"),
        ("blocks: []", "sources"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        load_recipe(str(path))


def test_an_unknown_recipe_names_the_packaged_ones() -> None:
    with pytest.raises(UserError, match="arm, arm_384, mae, supervised"):
        load_recipe("dino")
