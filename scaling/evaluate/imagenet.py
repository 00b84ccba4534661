"""Other test sets for an ImageNet classifier: how their classes map to its own, and what counts as right.

- imagenet-v2 (Recht et al. 2019): folders 0 to 999 number the sorted WordNet ids.
- imagenet-a (Hendrycks et al. 2021b) and imagenet-r (Hendrycks et al. 2021a): folders are WordNet ids, 200 of them, and
  only the logits of these 200 compete, as in the authors' evaluation code.
- imagenet-sketch (Wang et al. 2019): folders are WordNet ids, all 1000.
- imagenet-real (Beyer et al. 2020): new labels of the validation images, several or none each; images without a label
  are left out, and a prediction is right when it is among the labels. There is no top-5.

The first four are packed (`armscale data pack imagefolder:DIR SHARDS`) and read as shards; the last is the authors'
real.json, a list of lists of class numbers in the order of the validation images' own numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.index import TRAIN, read_index, split_folder
from data.store import Store
from scaling.config import EvaluatorConfig
from scaling.errors import UserError
from scaling.evaluate.accuracy import counts
from scaling.evaluate.subject import TEST, Images

NUMBERED = "imagenet-v2"
RESTRICTED = ("imagenet-a", "imagenet-r")
"""Only the classes that occur compete."""
REASSESSED = "imagenet-real"
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class TestSet:
    """The subject's own test split, or another whose labels are translated to the subject's classes."""

    split: str = TEST
    shards: str = ""  # "": the subject's own
    row: dict[str, Any] = field(default_factory=dict)  # what its evaluation says otherwise
    number_of: Tensor | None = None  # (its classes,): the subject's class
    out: Tensor | None = None  # (the subject's classes,): true where a class does not compete

    def count(self, logits: Tensor, batch: Images) -> Tensor:
        """(4,) as `accuracy.counts`."""
        if self.out is not None:
            logits = logits.masked_fill(self.out.to(logits.device), -torch.inf)
        labels = batch.labels if self.number_of is None else self.number_of.to(logits.device)[batch.labels]
        return counts(logits, labels)


@dataclass(frozen=True)
class Reassessed(TestSet):
    """The subject's own test split with several or no labels an image."""

    right: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))  # (images, classes)

    def count(self, logits: Tensor, batch: Images) -> Tensor:
        """As above; images without a label count for nothing."""
        right = self.right[batch.samples].to(logits.device)
        counted = right.any(dim=1)
        hits = right.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
        return torch.stack([hits.sum(), hits.sum(), counted.sum() * 0, counted.sum()]).double()


def test_set(shards: str, classes: Sequence[str], options: EvaluatorConfig) -> TestSet:
    """What `options` asks of a classifier of `classes` trained on `shards`; UserError where the files do not fit."""
    if not options.dataset:
        return TestSet()
    row: dict[str, Any] = {"dataset": options.dataset}
    if options.dataset == REASSESSED:
        store = Store(split_folder(shards, TEST))
        numbers = [validation_number(store.name(sample)) for sample in range(store.index.samples)]
        right = read_real(Path(options.path), numbers, len(classes))
        return Reassessed(row=row | {"top5": None, "loss": None}, right=right)
    split = next((split for split in (TEST, TRAIN) if _holds(options.path, split)), TRAIN)
    theirs = read_index(split_folder(options.path, split)).classes
    number_of = class_numbers(options.dataset, theirs, classes)
    out = None
    if options.dataset in RESTRICTED:
        out = torch.ones(len(classes), dtype=torch.bool)
        out[number_of] = False
    return TestSet(split, options.path, row, number_of, out)


def _holds(shards: str, split: str) -> bool:
    try:
        split_folder(shards, split)
    except UserError:
        return False
    return True


def class_numbers(dataset: str, theirs: Sequence[str], ours: Sequence[str]) -> Tensor:
    """(len(theirs),): the number among `ours` of each class of `dataset`; UserError where one is not there."""
    if dataset == NUMBERED:
        names = {str(number): number for number in range(len(ours))}
    else:
        names = {name: number for number, name in enumerate(ours)}
    unknown = [name for name in theirs if name not in names]
    if unknown:
        valid = "class numbers" if dataset == NUMBERED else f"classes of the training split, as {ours[0]}"
        raise UserError(f"classes of {dataset}", unknown[:5], valid)
    return torch.tensor([names[name] for name in theirs])


def validation_number(name: str) -> int:
    """The number from 1 of an ImageNet validation image, as its original name has it."""
    found = VALIDATION_NAME.search(name)
    if found is None:
        raise UserError("shards", name, "validation images under their names, ILSVRC2012_val_00000001")
    return int(found[1])


def read_real(path: Path, numbers: Sequence[int], classes: int) -> Tensor:
    """(images, classes) bool from real.json: which classes are right for the images with these numbers."""
    valid = "a list of lists of class numbers, one for each validation image"
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
        right = torch.zeros(len(numbers), classes, dtype=torch.bool)
        for row, number in enumerate(numbers):
            right[row, labels[number - 1]] = True
    except FileNotFoundError:
        raise UserError("path", str(path), valid, why="no such file") from None
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise UserError("path", str(path), valid, why=str(error)) from None
    return right
