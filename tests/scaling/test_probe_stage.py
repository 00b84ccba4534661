"""The stage `probe`: a run that trains nothing and reads the encoder of its parent, or a random one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import models
from models.build import build_objective
from models.weights import WEIGHTS, write_module
from scaling import rundir
from scaling.card import CARD
from scaling.config import EvaluatorConfig
from scaling.evaluate.knn import knn
from scaling.evaluate.probe import linear_probe
from scaling.evaluate.subject import subject_from
from scaling.execute import execute
from scaling.reading import load_run
from scaling.study.chains import runs
from scaling.study.table import load_study
from tests.scaling.runs import BATCH, small_config, write_run

PROBES = [EvaluatorConfig("linear_probe"), EvaluatorConfig("knn", k=5)]
EXACT = ("protocol", "dataset", "resolution", "weights", "top1", "top5", "images")
PROBE: dict[str, Any] = {"images": 0, "lr": 0.0, "warmup": 0.0, "evaluate": PROBES}


def carried_out(root: Path, *arguments: Any, **changes: Any) -> Path:
    folder = write_run(small_config(*arguments, **changes), root)
    execute(load_run(folder / rundir.CONFIG), folder)
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return rundir.read_lines(folder / rundir.EVALUATIONS)[0]


def summary_of(folder: Path) -> dict[str, Any]:
    found = rundir.read_json(folder / rundir.SUMMARY)
    assert found is not None
    return found


@pytest.fixture(scope="module", params=["ar", "mae"])
def parent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A pretraining that has probed itself when it was done."""
    root = tmp_path_factory.mktemp(request.param)
    return carried_out(root, shards, strategy=request.param, images=8 * BATCH, lr=3e-3, evaluate=PROBES)


def test_it_finds_what_the_pretraining_finds_of_itself(parent: Path, shards: Path) -> None:
    strategy = summary_of(parent)["strategy"]
    probe = carried_out(parent.parents[1], shards, "probe", strategy, parent=parent.name, **PROBE)
    assert [{key: row[key] for key in EXACT} for row in rows_of(probe)] == [
        {key: row[key] for key in EXACT} for row in rows_of(parent)
    ]
    before, after = load_file(parent / WEIGHTS), load_file(probe / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_its_summary(parent: Path, shards: Path) -> None:
    """The linear probe is its number; it costs no training, and what came before stands among its totals."""
    before = summary_of(parent)
    probe = carried_out(parent.parents[1], shards, "probe", before["strategy"], parent=parent.name, seed=1, **PROBE)
    after = summary_of(probe)
    assert (after["protocol"], after["top1"]) == ("linear_probe", rows_of(probe)[0]["top1"])
    assert (after["images_seen"], after["train_flops"], after["final_loss"]) == (0, 0, None)
    assert after["total_images_seen"] == before["images_seen"]
    assert isinstance(after["total_images_seen"], int)
    assert after["parameters"] == after["encoder_parameters"] == before["encoder_parameters"] < before["parameters"]
    assert "Nothing was trained" in (probe / CARD).read_text()
    assert not (probe / rundir.METRICS).exists()


def test_redrawn_weights_are_noticed(parent: Path, shards: Path, tmp_path: Path) -> None:
    """A probe under a parent whose weights were drawn anew reads other features."""
    copy = tmp_path / parent.parent.name / parent.name
    shutil.copytree(parent, copy)
    module = models.load(parent)
    other = build_objective(module.encoder.config, module.config, seed=9).get_submodule("module")  # type: ignore[arg-type, union-attr]
    write_module(other, copy / WEIGHTS, "native")
    probe = carried_out(tmp_path, shards, "probe", summary_of(parent)["strategy"], parent=parent.name, **PROBE)
    assert rows_of(probe)[0]["loss"] != pytest.approx(rows_of(parent)[0]["loss"], rel=1e-3)


def test_without_a_parent_the_encoder_is_random(shards: Path, tmp_path: Path) -> None:
    """As it is drawn for its seed, untouched: the control of every other probe."""
    probe = carried_out(tmp_path, shards, "probe", "scratch", seed=3, **PROBE)
    module = models.load(probe)
    drawn = build_objective(module.encoder.config, module.config, seed=3).get_submodule("module")  # type: ignore[arg-type, union-attr]
    found = module.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in drawn.state_dict().items())
    assert [row["protocol"] for row in rows_of(probe)] == ["linear_probe", "knn"]
    assert summary_of(probe)["top1"] == rows_of(probe)[0]["top1"]
    assert "Its weights are random" in (probe / CARD).read_text()


def test_features_are_extracted_once(parent: Path, shards: Path) -> None:
    """192 training and 48 test images in batches of 48: five passes, whatever reads them."""
    subject = subject_from(models.load(parent), str(shards), eval_resize="none", batch=48)
    passes = []
    subject.module.encoder.register_forward_hook(lambda *_: passes.append(1))  # type: ignore[union-attr]
    for entry, evaluator in ((PROBES[0], linear_probe), (PROBES[1], knn), (PROBES[1], knn)):
        evaluator(subject, entry)
    assert len(passes) == 5


def test_a_study_plans_them(tmp_path: Path) -> None:
    """Under each pretraining and, for scratch, at the top; they rename nothing and nothing starts from them."""
    stage = {"images": 640, "global_batch": 64, "image_size": 32, "lr": 1e-3}
    study: dict[str, Any] = {
        "name": "probed",
        "data": {"shards": "x"},
        "axes": {"strategy": ["ar", "mae", "supervised", "scratch"], "size": ["pico"], "seed": [0, 1]},
        "defaults": {"model.patch_size": 4, "ar.cluster_side": 2, "pretrain": stage, "finetune": stage},
    }
    plain, probed = tmp_path / "plain.yaml", tmp_path / "probed.yaml"
    plain.write_text(yaml.safe_dump(study))
    study["defaults"]["probe"] = [{"kind": "linear_probe"}, {"kind": "knn"}]
    probed.write_text(yaml.safe_dump(study))
    table = {run.run: run for run in runs(load_study(probed), "f")}
    found = {name: run for name, run in table.items() if run.stage == "probe"}
    assert set(table) - set(found) == {run.run for run in runs(load_study(plain), "f")}
    assert sorted((run.strategy, run.seed) for run in found.values()) == [
        (strategy, seed) for strategy in ("ar", "mae", "scratch") for seed in (0, 1)
    ]
    for run in found.values():
        parent = table[run.parent] if run.parent else None
        assert (parent.stage, parent.strategy, parent.seed) == ("pretrain", run.strategy, run.seed) if parent else True
        assert (parent is None) == (run.strategy == "scratch")
    assert not any(run.parent in found for run in table.values())
