"""The list of evaluators in a run: when each has its turn, that training does not notice, and that ranks agree."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner

import models
from data.config import Augmentation
from data.index import split_folder
from data.stream import open_evaluation
from models.build import build_objective
from models.config import SupervisedConfig
from models.weights import WEIGHTS, write_module
from scaling import rundir
from scaling.checkpoint import COMMIT
from scaling.checks import check
from scaling.cli.evaluate import evaluate, own_resize
from scaling.config import EvaluatorConfig
from scaling.errors import UserError
from scaling.evaluate import BUILDERS
from scaling.evaluate.knn import knn
from scaling.evaluate.subject import Subject, subject_from
from scaling.execute import execute
from scaling.reading import load_run
from scaling.stop import Stopped
from tests.models.configs import encoder
from tests.scaling.evaluate import several
from tests.scaling.runs import carry_out, environment, small_config, write_run

ALL = [
    EvaluatorConfig("pretrain_loss", every=2),
    EvaluatorConfig("knn", every=3, k=5),
    EvaluatorConfig("linear_probe"),
    EvaluatorConfig("throughput"),
]
TURNS = {"pretrain_loss": [2, 4, 6], "knn": [3, 6], "linear_probe": [6]}


def trained(config: object, root: Path) -> Path:
    """A run carried out in this process."""
    folder = write_run(config, root)  # type: ignore[arg-type]
    execute(load_run(folder / rundir.CONFIG), folder)
    return folder


def turns(folder: Path) -> dict[str, list[int]]:
    """Steps of the rows of each protocol, as they were written."""
    found: dict[str, list[int]] = {}
    for row in rundir.read_lines(folder / rundir.EVALUATIONS)[0]:
        found.setdefault(row["protocol"], []).append(row["step"])
    return found


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A pretraining of six steps with every evaluator."""
    return trained(small_config(shards, evaluate=ALL), tmp_path_factory.mktemp("evaluated"))


def test_each_has_its_turn_during_training_and_after_it(evaluated: Path) -> None:
    rows, _ = rundir.read_lines(evaluated / rundir.EVALUATIONS)
    assert turns(evaluated) == TURNS
    assert all(row["images"] == 48 and row["weights"] == "raw" for row in rows)
    assert all((row["top1"] is None) == (row["protocol"] == "pretrain_loss") for row in rows)
    inference = rundir.read_json(evaluated / "inference.json")
    assert inference is not None
    assert (inference["batch"], inference["output"]) == (48, "features")
    assert inference["images_per_second"] > 0


def test_an_evaluation_that_a_stop_cut_is_made_when_the_run_goes_on(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [EvaluatorConfig("pretrain_loss", every=2), EvaluatorConfig("knn", every=2, k=5)]
    config = small_config(shards, evaluate=entries, keep_checkpoints=4, ema=0.5)
    folder = write_run(config, tmp_path)

    def stopped(subject: Subject, entry: EvaluatorConfig) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGUSR1)
        return knn(subject, entry)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="during evaluation"):
        patch.setitem(BUILDERS, "knn", stopped)
        execute(load_run(folder / rundir.CONFIG), folder)
    execute(load_run(folder / rundir.CONFIG), folder)
    assert turns(folder) == {"pretrain_loss": [2, 2, 2, 4, 4, 6, 6], "knn": [2, 2, 4, 4, 6, 6]}

    (folder / rundir.SUMMARY).unlink()  # as if killed after the evaluation of step 4, which is not made again
    (folder / rundir.CHECKPOINTS / "step-00000006" / COMMIT).unlink()
    execute(load_run(folder / rundir.CONFIG), folder)
    assert turns(folder)["knn"] == [2, 2, 4, 4, 6, 6, 6, 6]


def test_training_does_not_notice(evaluated: Path, tmp_path: Path, shards: Path) -> None:
    """The same run without evaluators has the same id and the same weights, to the bit."""
    alone = trained(small_config(shards, evaluate=[]), tmp_path)
    assert alone.name == evaluated.name
    ours, theirs = load_file(evaluated / WEIGHTS), load_file(alone / WEIGHTS)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (alone / rundir.EVALUATIONS).exists()


def test_summary_keeps_to_the_stages_own_evaluation(evaluated: Path) -> None:
    summary = rundir.read_json(evaluated / rundir.SUMMARY)
    rows, _ = rundir.read_lines(evaluated / rundir.EVALUATIONS)
    assert summary is not None
    assert (summary["protocol"], summary["top1"], summary["top1_best"]) == ("pretrain_loss", None, None)
    assert summary["pretrain_loss"] == [row["loss"] for row in rows if row["protocol"] == "pretrain_loss"][-1]


def test_command_gives_what_the_run_found(evaluated: Path, tmp_path: Path, shards: Path) -> None:
    """From the run folder alone, through `armscale evaluate`, which scales the images as the run did."""
    rows, _ = rundir.read_lines(evaluated / rundir.EVALUATIONS)
    found = by_command(evaluated, shards, tmp_path / "row.json", "linear_probe")
    assert found == {key: next(r for r in rows if r["protocol"] == "linear_probe")[key] for key in found}


def test_images_are_scaled_as_by_the_run_and_for_other_checkpoints_as_in_the_paper(evaluated: Path) -> None:
    assert own_resize(evaluated) == own_resize(evaluated / WEIGHTS) == "none"
    assert own_resize(evaluated / "arm.pth") == own_resize(evaluated.parent) == "square"


def by_command(run: Path, shards: Path, output: Path, kind: str, *more: str) -> dict[str, object]:
    app = Typer()
    app.command()(evaluate)
    options = ["--kind", kind, "--batch", "48", "--output", str(output), *more]
    result = CliRunner().invoke(app, [str(run), str(shards), *options])
    assert result.exit_code == 0, result.output
    assert "48 images at 32 px" in result.output
    found: dict[str, object] = json.loads(output.read_text())
    return found


@pytest.mark.parametrize("to", ["official", "native"])
def test_official_checkpoints_are_evaluated_with_one_command(tmp_path: Path, shards: Path, to: str) -> None:
    """The same classifier as a file of the official code and as ours, against a plain loop over the images."""
    config = encoder(scan_directions=4, class_token=True, positions="learned")
    module = build_objective(config, SupervisedConfig(classes=3), seed=5).get_submodule("module").eval()
    path = tmp_path / ("arm.pth" if to == "official" else "weights.safetensors")
    write_module(module, path, to)
    alone = tmp_path / "shards"  # the published constants normalise, so that no training split is needed
    shutil.copytree(split_folder(shards, "test"), alone / "test")
    found = by_command(path, alone, tmp_path / "row.json", "classification", "--resize", "none")
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    plain = Augmentation(image_size=module.encoder.config.image_size, eval_resize="none")
    batches = list(open_evaluation(alone, plain, batch=16))
    images = [(batch.images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1) for batch in batches]
    right = torch.cat([module(x).argmax(dim=1) == batch.labels for x, batch in zip(images, batches, strict=True)])
    assert (found["top1"], found["top5"], found["images"]) == (right.double().mean().item(), 1.0, 48)
    with pytest.raises(UserError, match="data of 7 classes"):
        other = build_objective(config, SupervisedConfig(classes=7)).get_submodule("module")
        subject_from(other, str(shards))


@pytest.mark.slow
def test_ranks_agree(evaluated: Path, tmp_path: Path, shards: Path) -> None:
    """Five real processes; neither 48 test nor 192 training images divide by 5."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "5"]
    command = [*start, "-m", several.__name__, str(evaluated), str(shards), str(tmp_path / "rows.json")]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    together = json.loads((tmp_path / "rows.json").read_text())
    alone: dict[str, Any] = several.rows(evaluated, str(shards), batch=48)
    for kind in several.KINDS:
        assert together[kind].pop("loss", 0) == pytest.approx(alone[kind].pop("loss", 0), rel=1e-5)
        assert together[kind] == alone[kind]


@pytest.mark.slow
def test_a_sharded_run_evaluates_during_training(evaluated: Path, tmp_path: Path, shards: Path) -> None:
    """Under FSDP on two ranks, every evaluator sees whole weights; rows come once."""
    folder = write_run(small_config(shards, evaluate=ALL, engine="fsdp"), tmp_path)
    carry_out(folder, ranks=2)
    ours, _ = rundir.read_lines(folder / rundir.EVALUATIONS)
    theirs, _ = rundir.read_lines(evaluated / rundir.EVALUATIONS)
    assert [(row["protocol"], row["step"]) for row in ours] == [(row["protocol"], row["step"]) for row in theirs]
    for found, expected in zip(ours, theirs, strict=True):
        if expected["protocol"] == "pretrain_loss":
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        else:
            assert found["top1"] == pytest.approx(expected["top1"], abs=2.1 / 48)  # sums in another order


def test_the_loaded_weights_are_what_is_probed(evaluated: Path, shards: Path) -> None:
    """Shuffled ones are noticed."""
    module = models.load(evaluated)

    def accuracy() -> dict[str, Any]:
        return knn(subject_from(module, str(shards), eval_resize="none"), EvaluatorConfig("knn", k=5))

    own = accuracy()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    assert accuracy() != own


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "classification"}, r"pretrain\.evaluate\[1\]\.kind.*pretrain_loss, knn"),
        ({"kind": "knn", "every": -1}, r"evaluate\[1\]\.every"),
        ({"kind": "knn", "k": 0}, r"evaluate\[1\]\.k"),
        ({"kind": "knn", "dataset": "imagenet-a", "path": "x"}, "classification"),
        ({"kind": "knn", "path": "x"}, "dataset's name and its path"),
    ],
)
def test_refusals_name_the_entry(shards: Path, entry: dict[str, object], message: str) -> None:
    entries = [EvaluatorConfig("knn"), EvaluatorConfig(**entry)]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        check(small_config(shards, evaluate=entries))


def test_unknown_fields_of_an_entry_are_refused(tmp_path: Path, shards: Path) -> None:
    folder = write_run(small_config(shards), tmp_path)
    with pytest.raises(UserError, match=r"'evry'.*kind, every, dataset"):
        load_run(folder / rundir.CONFIG, ["train.evaluate=[{kind: knn, evry: 3}]"])
    with pytest.raises(UserError):
        load_run(folder / rundir.CONFIG, ["train.evaluate={kind: knn}"])
