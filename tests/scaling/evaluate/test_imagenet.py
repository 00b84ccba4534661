"""The other test sets: class maps, which logits compete, and labels of several classes, against plain loops."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from data.config import Augmentation
from data.index import read_index, split_folder
from data.store import Store
from scaling.cli.data import app
from scaling.config import EvaluatorConfig
from scaling.errors import UserError
from scaling.evaluate import require_test_sets
from scaling.evaluate.classify import classify
from scaling.evaluate.imagenet import class_numbers, read_real, validation_number
from scaling.evaluate.subject import Subject
from scaling.start import check_inputs
from scaling.study.plan import plan_study, require_data
from scaling.study.table import load_study
from tests.conftest import draw_shape
from tests.scaling.runs import small_config
from tests.scaling.test_quickstart import tiny_study

WORDNET = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331", "n01498041")


class ByColour(nn.Module):
    """Logits that are a fixed function of an image's mean colour."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        colours = images.mean(dim=(2, 3))
        return torch.sin(colours @ torch.linspace(1, 40, 3 * len(WORDNET)).view(3, -1))


def pack(folder: Path, split: str, names: list[str], classes: list[int], numbered: bool = False) -> Path:
    """Shards of an image folder with the images `names`, each in the folder of its class."""
    generator = np.random.default_rng(len(names))
    for name, number in zip(names, classes, strict=True):
        target = folder / "images" / split / (str(number) if numbered else WORDNET[number])
        target.mkdir(parents=True, exist_ok=True)
        draw_shape("square", generator).save(target / f"{name}.png")
    result = CliRunner().invoke(app, ["pack", f"imagefolder:{folder / 'images'}", str(folder / "shards")])
    assert result.exit_code == 0, result.output
    return folder / "shards"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A classifier of seven classes; its training split, and 21 validation images under their ImageNet names."""
    folder = tmp_path_factory.mktemp("imagenet")
    classes = [number % len(WORDNET) for number in range(21)]
    pack(folder, "train", [f"image{number}" for number in range(21)], classes)
    shards = pack(folder, "val", [f"ILSVRC2012_val_{number:08d}" for number in range(1, 22)], classes)
    return Subject(
        module=ByColour(),
        shards=str(shards),
        index=read_index(split_folder(shards, "train")),
        augmentation=Augmentation(image_size=32, eval_resize="none"),
        batch=8,
    )


def logits_of(subject: Subject, shards: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the folder's class numbers of all images."""
    batches = list(subject.batches(split, shards))
    return torch.cat([subject.module(batch.images) for batch in batches]), torch.cat([b.labels for b in batches])


@pytest.mark.parametrize("dataset", ["imagenet-a", "imagenet-sketch"])
def test_subsets_by_wordnet_id(tmp_path: Path, subject: Subject, dataset: str) -> None:
    """Folders of classes 5, 1 and 4: in imagenet-a only these compete, in imagenet-sketch all do."""
    shards = pack(tmp_path, "train", [f"x{number}" for number in range(30)], [(5, 1, 4)[n % 3] for n in range(30)])
    row = classify(subject, EvaluatorConfig(dataset=dataset, path=str(shards)))
    logits, labels = logits_of(subject, str(shards), "train")
    competing = [1, 4, 5] if dataset == "imagenet-a" else range(7)
    right = 0
    for row_logits, label in zip(logits.tolist(), labels.tolist(), strict=True):
        best = max(competing, key=lambda number: row_logits[number])
        right += best == (1, 4, 5)[label]
    assert row["top1"] == right / 30
    assert 0 < right < 30
    assert (row["dataset"], row["images"], row["protocol"]) == (dataset, 30, "finetune")


def test_numbered_folders_sort_by_number(tmp_path: Path, subject: Subject) -> None:
    ours = [f"n{number:02d}" for number in range(11)]
    assert class_numbers("imagenet-v2", ("0", "1", "10", "2"), ours).tolist() == [0, 1, 10, 2]
    shards = pack(tmp_path, "train", [f"x{number}" for number in range(14)], [n % 7 for n in range(14)], numbered=True)
    row = classify(subject, EvaluatorConfig(dataset="imagenet-v2", path=str(shards)))
    logits, labels = logits_of(subject, str(shards), "train")
    assert row["top1"] == (logits.argmax(dim=1) == labels).double().mean().item()


def test_reassessed_labels(tmp_path: Path, subject: Subject) -> None:
    """Several labels, one, or none; images are found by the number in their names, whatever the order of the shards."""
    labels = [[number % 7, (number + 3) % 7] if number % 3 else [] for number in range(21)]
    (tmp_path / "real.json").write_text(json.dumps(labels))
    row = classify(subject, EvaluatorConfig(dataset="imagenet-real", path=str(tmp_path / "real.json")))
    logits, own = logits_of(subject, "", "test")
    right = counted = 0
    store = Store(split_folder(subject.shards, "test"))
    for sample in range(21):
        number = validation_number(store.name(sample)) - 1
        assert own[sample] == number % 7
        counted += bool(labels[number])
        right += int(logits[sample].argmax()) in labels[number]
    assert counted == 14
    assert row["images"] == 14
    assert row["top1"] == right / 14
    assert row["top5"] is None
    assert row["dataset"] == "imagenet-real"


def test_refusals(tmp_path: Path, subject: Subject) -> None:
    with pytest.raises(UserError, match=r"classes of imagenet-r: \['goldfish'\]"):
        class_numbers("imagenet-r", ("goldfish", "n01440764"), WORDNET)
    with pytest.raises(UserError, match="under their names"):
        validation_number("shard-000000.tar, dog/1.jpg")
    (tmp_path / "real.json").write_text("[[0], [7]]")
    with pytest.raises(UserError, match="one for each validation image"):
        read_real(tmp_path / "real.json", [1, 2], classes=7)
    with pytest.raises(UserError, match="no such file"):
        read_real(tmp_path / "absent.json", [1], classes=7)


def test_other_test_sets_are_looked_at_before_training(tmp_path: Path, subject: Subject) -> None:
    """When a run starts and, for all runs, when a study is launched; not where they will not be evaluated."""
    fitting = pack(tmp_path / "fitting", "train", [f"x{number}" for number in range(7)], list(range(7)), numbered=True)
    (tmp_path / "real.json").write_text("[[0]]")
    own = EvaluatorConfig("classification")

    def asked(dataset: str, path: Path) -> list[EvaluatorConfig]:
        return [own, EvaluatorConfig(dataset=dataset, path=str(path))]

    config = small_config(
        Path(subject.shards), "finetune", "scratch", evaluate=asked("imagenet-v2", fitting), global_batch=16
    )
    check_inputs(config, tmp_path, 1)
    for dataset, path, told in (
        ("imagenet-a", tmp_path / "absent", "imagenet-a: there is no such folder.*armscale data pack"),
        ("imagenet-a", fitting, "imagenet-a: classes of imagenet-a .*'0'.*n01440764"),
        ("imagenet-real", tmp_path / "absent.json", "no such file"),
        ("imagenet-real", tmp_path / "real.json", "one for each validation image"),
    ):
        entries = asked(dataset, path)
        wrong = dataclasses.replace(config, train=dataclasses.replace(config.train, evaluate=entries))
        field = rf"finetune\.evaluate\[1\]\.path: '{path}' .*{told}"
        with pytest.raises(UserError, match=field):
            check_inputs(wrong, tmp_path, 1)
        listed = [dataclasses.asdict(entry) for entry in entries]
        axes = {"strategy": ["scratch"], "size": ["pico"], "finetune.evaluate": [[{"kind": "classification"}], listed]}
        study = tiny_study(tmp_path, Path(subject.shards), axes=axes, rules=[])
        with pytest.raises(UserError, match=field):
            require_data(plan_study(load_study(study), tmp_path))
        held_out = dataclasses.replace(wrong.data, held_out=0.1)
        require_test_sets(dataclasses.replace(wrong, purpose="throughput"), subject.index.classes)
        require_test_sets(dataclasses.replace(wrong, data=held_out), subject.index.classes)
