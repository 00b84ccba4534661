"""Fair comparison: arms that differ in their strategy are given equal images, equal FLOPs or equal GPU-hours.

The first arm of a comparison stays as the study has it, unless the study gives a `budget`. In every other arm the
length of one stage follows: of the pretraining, or of the only stage where training is supervised. The control
`scratch` is the finetuning alone and keeps its length: it shows what is there without the rest.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from models.flops import train_flops_per_image
from scaling.config import RunConfig, TrainConfig, stage_images
from scaling.errors import UserError
from scaling.study.stages import SECTIONS, sections, stage_run
from scaling.study.table import Cell, CellConfig, Study

RATE = "images_per_second_per_device"
CONTROL = "scratch"


def matched(study: Study, cells: list[Cell], samples: int | None, classes: int) -> list[Cell]:
    """The cells with the lengths that `match` gives them; as they are without it.

    Lengths are whole optimiser steps, so arms are equal to within one step. Raises UserError where epochs cannot be
    told in images, a throughput is not known, or a budget does not even pay for the finetuning.
    """
    if study.match is None:
        return cells
    price = Price(study, samples, classes)
    budgets: dict[tuple[Any, ...], float] = {}
    found = []
    for cell in cells:
        config = cell.config
        if config.strategy != CONTROL:
            key = tuple(str(value) for name, value in cell.point.items() if name != "strategy")
            if config.budget is None and key not in budgets:
                budgets[key] = sum(price.stage(config, section) for section in sections(config))
            else:
                config = _paid(config, budgets.get(key, config.budget or 0.0), price)
        found.append(dataclasses.replace(cell, config=config))
    return found


def _paid(config: CellConfig, budget: float, price: Price) -> CellConfig:
    """`config` with its first stage as long as `budget` lasts after the others."""
    first, *others = sections(config)
    left = budget - sum(price.stage(config, section) for section in others)
    train: TrainConfig = getattr(config, first)
    steps = round(left / price.image(config, first) / train.global_batch)
    if steps < 1:
        arm = f"{config.strategy}-{config.encoder}-{config.size}"
        why = f"{arm} needs {budget - left:.4g} for {' and '.join(others) or 'a first step'}"
        raise UserError("budget" if config.budget else "match", f"{budget:.4g}", "a budget that leaves a step", why)
    changed: dict[str, Any] = {first: dataclasses.replace(train, images=steps * train.global_batch, epochs=None)}
    return dataclasses.replace(config, **changed)


class Price:
    """What a stage costs in the unit of `match`: images, operations (matrix products and scans) or GPU-hours."""

    def __init__(self, study: Study, samples: int | None, classes: int) -> None:
        self.study, self.samples, self.classes = study, samples, classes
        self.rates = read_rates(study.throughput) if study.match == "gpu_hours" else {}

    def stage(self, cell: CellConfig, section: str) -> float:
        """Of all images of a stage."""
        train: TrainConfig = getattr(cell, section)
        if train.branches:
            raise UserError(f"{section}.branches", list(train.branches), "none where `match` gives the lengths")
        images = stage_images(train, self.samples)
        if images is None:
            why = f"{section} is given in epochs, and the number of training images is not known"
            raise UserError("match", self.study.match, "packed shards or a built-in source", why)
        return images * self.image(cell, section)

    def image(self, cell: CellConfig, section: str) -> float:
        """Of one image."""
        if self.study.match == "images":
            return 1.0
        # Whatever its length, which may not be known yet.
        train = dataclasses.replace(getattr(cell, section), branches=(), images=10**12, epochs=None)
        config = stage_run(self.study, cell, section, train, None)
        if self.study.match == "flops":
            return sum(train_flops_per_image(config.encoder_config(), config.objective_config(self.classes)))
        return 1 / (3600 * self._rate(config))

    def _rate(self, config: RunConfig) -> float:
        """Images a second and device: finetuning is the same work whatever came before it."""
        key = _key(vars(config), config.train.image_size)
        if key not in self.rates:
            valid = "rows of every stage: " + "; ".join(sorted(" ".join(map(str, known)) for known in self.rates))
            raise UserError("throughput", self.study.throughput, valid, why=f"no {' '.join(map(str, key))}")
        return self.rates[key]


def read_rates(path: str | None) -> dict[tuple[Any, ...], float]:
    """Measured rates by stage: the median of the rows in a .json list, or in the runs.csv of collected runs.

    Rows have strategy, encoder, size, stage, image_size (or config.train.image_size) and images_per_second_per_device.
    """
    valid = f"a .json list of rows, or runs.csv of collected throughput runs, with {RATE}"
    if path is None:
        raise UserError("throughput", path, valid, why="match: gpu_hours needs measured rates")
    try:
        text = Path(path).read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines())) if path.endswith(".csv") else json.loads(text)
        found: dict[tuple[Any, ...], list[float]] = {}
        for row in rows:
            if row.get(RATE):
                size = row.get("image_size") or row["config.train.image_size"]
                found.setdefault(_key(row, int(float(size))), []).append(float(row[RATE]))
    except OSError as error:
        raise UserError("throughput", path, valid, why=error.strerror or "") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("throughput", path, valid, why=f"{type(error).__name__}: {error}") from None
    return {key: statistics.median(rates) for key, rates in found.items()}


def _key(row: dict[str, Any], image_size: int) -> tuple[Any, ...]:
    strategy = row["strategy"] if row["stage"] == SECTIONS["pretrain"] else "any"
    return strategy, row["encoder"], row["size"], row["stage"], image_size
