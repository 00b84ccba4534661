"""The step bench from end to end at the smallest size, its baseline against our trainer, and what its figures mean."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from models.flops import train_flops_per_image
from scaling.bench import loop
from scaling.bench.memory import peak_bytes
from scaling.bench.official import OfficialLoop
from scaling.bench.trainer import StepCase, Trainer, scan_calls
from scaling.cli.bench import app
from scaling.engines.single import SingleEngine
from scaling.environment import Rank
from scaling.errors import UserError
from scaling.steplog import StepLog
from scaling.steps import Step

CPU = torch.device("cpu")


def test_command_reports_every_contender(tmp_path: Path) -> None:
    output = tmp_path / "step.json"
    arguments = "step --size pico --micro-batch 2 --rounds 2 --backend torch,numba"
    result = CliRunner().invoke(app, [*arguments.split(), "--output", str(output)])
    assert result.exit_code == 0, result.output
    report = json.loads(output.read_text())
    names = ["torch eager", "numba eager", "baseline official-loop"]
    assert [row["name"] for row in report["results"]] == names
    for row in report["results"]:
        assert row["images_per_second"] == pytest.approx(2 / row["step"]["median"])
        assert row["mfu"] is None  # no table knows the peak of a processor
        assert 0 < row["scan_share"]["median"] < 2
        assert set(row["times_faster_than"]) == {"baseline official-loop"}
    config = StepCase(size="pico").config()
    assert report["flops_per_image"] == train_flops_per_image(config.encoder_config(), config.objective_config(10))[0]
    assert report["tokens_per_image"] == 60


def test_what_the_loop_does_is_in_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what its stream does, which takes the bare steps, is not."""
    add = StepLog.add

    def slow(log: StepLog, step: Step) -> None:
        time.sleep(1.0)
        add(log, step)

    monkeypatch.setattr(StepLog, "add", slow)
    output = tmp_path / "step.json"
    arguments = "step --size pico --micro-batch 1 --rounds 1 --backend torch --baseline= --loop 2 --output"
    result = CliRunner().invoke(app, [*arguments.split(), str(output)])
    assert result.exit_code == 0, result.output
    report = json.loads(output.read_text())["loop"]
    assert (report["steps"], report["loop"]["rounds"], report["bare"]["rounds"]) == (2, 2, 2)
    assert report["loop"]["median"] > 1.0 > report["bare"]["median"]


def test_what_the_device_does_for_the_loop_is_in_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that works half a second after every step of the loop, whenever it is waited for."""
    pending: list[float] = []
    step = SingleEngine.step

    def asynchronous(engine: SingleEngine, *arguments: Any) -> Tensor:
        pending.append(0.5)
        return step(engine, *arguments)

    def wait() -> None:
        time.sleep(sum(pending))
        pending.clear()

    monkeypatch.setattr(SingleEngine, "step", asynchronous)
    monkeypatch.setattr(loop, "synchronizer", lambda device: wait)
    monkeypatch.setattr(loop, "WARM_UP", 1)
    report = loop.loop_bench(StepCase(size="pico", micro_batch=1), CPU, "torch", steps=2)
    assert report["loop"]["median"] > 0.5 > report["bare"]["median"]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_baseline_takes_the_same_steps(stage: str) -> None:
    """Same weights, batch, clipping and update: after two steps the moments, which gradients shape, agree."""
    case = StepCase(strategy="ar" if stage == "pretrain" else "scratch", size="pico", stage=stage, micro_batch=2)
    ours, official = Trainer(case.config(), Rank(), "torch"), OfficialLoop(case.config(), CPU)
    assert official.kernels == "reference"
    for _ in range(2):
        ours.step()
        official.step()
    expected = dict(official.objective.named_parameters())
    for name, parameter in ours.engine.objective.named_parameters():
        found, wanted = ours.engine.optimizer.state[parameter], official.optimizer.state[expected[name]]
        for moment in ("exp_avg", "exp_avg_sq"):
            scale = wanted[moment].abs().max().item()
            torch.testing.assert_close(found[moment], wanted[moment], rtol=1e-3, atol=1e-4 * scale)
    assert bool(official.average) == (stage == "finetune")


def test_accumulation_is_one_step_of_the_whole_batch() -> None:
    once = Trainer(StepCase(size="pico", micro_batch=4).config(), Rank(), "torch")
    twice = Trainer(StepCase(size="pico", micro_batch=2, accumulation=2).config(), Rank(), "torch")
    assert (once.accumulation, twice.accumulation) == (1, 2)
    assert [len(trainer.inputs.images) for trainer in (once, twice)] == [4, 2]
    assert torch.isfinite(twice.step())


def test_the_scan_is_given_what_the_model_gives_it() -> None:
    inputs, calls = scan_calls(StepCase(size="pico", micro_batch=2, strategy="scratch", stage="finetune").config(), CPU)
    assert inputs is not None
    assert (calls, inputs.u.shape, inputs.groups, inputs.z) == (6, (2, 65, 4 * 64), 4, None)
    assert scan_calls(StepCase(size="pico", encoder="vit", micro_batch=2).config(), CPU) == (None, 0)


def test_peak_counts_what_is_held_at_once() -> None:
    def run() -> None:
        a = torch.empty(1 << 20)
        b = torch.empty(1 << 20)
        del a
        torch.empty(1 << 18)
        del b

    assert peak_bytes(run, CPU) == pytest.approx(2 * 4 << 20, rel=0.01)


def test_peak_knows_what_another_thread_let_go_of() -> None:
    """As gloo's threads do, which the profiler does not follow: the next block in its place tells. Which place the
    allocator takes next is its own, so a few may count beside the one that is held."""

    def run() -> None:
        for _ in range(50):
            held = [torch.empty(1 << 20)]
            thread = Thread(target=held.clear)
            thread.start()
            thread.join()

    assert 4 << 20 <= peak_bytes(run, CPU) <= 10 * (4 << 20)


def test_a_contender_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: OfficialLoop) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    monkeypatch.setattr(OfficialLoop, "step", no_memory)
    output = tmp_path / "step.json"
    arguments = ["step", "--size", "pico", "--micro-batch", "1", "--rounds", "1", "--backend", "torch"]
    assert CliRunner().invoke(app, [*arguments, "--output", str(output)]).exit_code == 0
    rows = json.loads(output.read_text())["results"]
    assert rows[1] == {"name": "baseline official-loop", "error": "OutOfMemoryError: CUDA out of memory"}
    assert rows[0]["times_faster_than"] == {}


@pytest.mark.parametrize("arguments", ["--backend nope", "--baseline nope", "--mode nope", "--size nope", "--engine x"])
def test_mistakes_are_named(arguments: str) -> None:
    result = CliRunner().invoke(app, ["step", "--micro-batch", "1", "--rounds", "1", *arguments.split()])
    assert isinstance(result.exception, UserError)
    assert arguments.split()[0].removeprefix("--") in str(result.exception)


@pytest.mark.parametrize(
    ("strategy", "stage", "valid"),
    [("scratch", "pretrain", "finetune"), ("supervised", "probe", "finetune"), ("ar", "probe", "pretrain, finetune")],
)
def test_only_stages_that_train_are_said_to_be_valid(strategy: str, stage: str, valid: str) -> None:
    with pytest.raises(UserError) as refused:
        StepCase(strategy, size="pico", stage=stage).config()
    assert str(refused.value) == f"stage: {stage!r} is not valid. Valid: {valid}"
    for name in valid.split(", "):
        assert StepCase(strategy, size="pico", stage=name).config().stage == name
