"""The list for GPUs, carried out on the CPU at its smallest sizes; steps on several ranks, with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from scaling.bench.correct import check_kernels
from scaling.bench.gpu import Machine, gpu_bench
from scaling.bench.ranks import RankCase, measure
from scaling.bench.scaling import scaling_bench, world_sizes
from scaling.bench.trainer import StepCase
from scaling.cli.bench import app
from scaling.errors import UserError
from tests.scaling.runs import HOME

CPU = torch.device("cpu")
NOT_ON_THE_GPU_MACHINE = ("omegaconf", "simplejpeg", "webdataset", "submitit", "deepspeed")


def test_backends_are_correct_here() -> None:
    rows = list(check_kernels(CPU, lengths=(7,), channels=(5,), batch=1))
    assert {row["operator"] for row in rows} == {"selective_scan", "causal_conv1d"}
    assert {(row["directions"], row["dtype"]) for row in rows} == {
        (directions, dtype) for directions in (1, 4) for dtype in ("float32", "bfloat16")
    }
    assert all(row["passed"] for row in rows), [row for row in rows if not row["passed"]]


def test_a_wrong_backend_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.scan import torch_scan

    forward = torch_scan.forward

    def off_by_little(*arguments: Any) -> Any:
        out, *kept = forward(*arguments)
        return out * (1 + 1e-4), *kept

    monkeypatch.setattr(torch_scan, "forward", off_by_little)
    rows = [row for row in check_kernels(CPU, (7,), (5,), 1) if row["backend"] == "torch" and row["dtype"] == "float32"]
    scans = [row for row in rows if row["operator"] == "selective_scan"]
    assert [row["passed"] for row in scans] == [False, False]
    for row in scans:
        wrong = {what for what, error in row["errors"].items() if error > row["bounds"][what]}
        assert wrong == {"output"}


def test_what_a_section_had_is_kept_when_it_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(machine: Machine) -> Any:
        yield {"value": 1}
        raise RuntimeError("an illegal memory access")

    output = tmp_path / "gpu.json"
    monkeypatch.setattr("scaling.bench.gpu.SECTIONS", {"first": breaks, "second": lambda machine: iter([{"value": 2}])})
    gpu_bench(Machine(CPU, 1, 10.0), (), output, lambda section, row: None)
    sections = json.loads(output.read_text())["sections"]
    assert sections["first"]["rows"] == [{"value": 1}]
    assert "an illegal memory access" in sections["first"]["error"]
    assert (sections["second"]["rows"], sections["second"]["complete"]) == ([{"value": 2}], True)


@pytest.mark.slow
def test_the_command_needs_little_of_the_machine(tmp_path: Path) -> None:
    """All sections but the timed steps, in a process where the packages that the GPU image lacks cannot be imported."""
    for name in NOT_ON_THE_GPU_MACHINE:
        (tmp_path / "hidden" / name).mkdir(parents=True)
        (tmp_path / "hidden" / name / "__init__.py").write_text("raise ImportError('hidden')")
    output = tmp_path / "gpu.json"
    paths = os.pathsep.join([str(HOME), str(tmp_path / "hidden")])
    command = [
        "-m",
        "scaling.cli",
        "bench",
        "gpu",
        "--device",
        "cpu",
        "--ranks",
        "2",
        "--only",
        "correctness,kernels,weak,checkpoints",
        "--output",
    ]
    ended = subprocess.run(
        [sys.executable, *command, str(output)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    sections = json.loads(output.read_text())["sections"]
    assert all(row["passed"] for row in sections["correctness"]["rows"])
    assert [row["ranks"] for row in sections["weak"]["rows"]] == [1, 2, 2]
    assert all(row["efficiency"] > 0 for row in sections["weak"]["rows"])
    saved, read, zero, verdict = sections["checkpoints"]["rows"]
    assert (saved["ranks"], read["ranks"], verdict["passed"]) == (2, 1, True)
    assert "deepspeed" in zero["error"]
    assert verdict["tensors"] > 100


@pytest.mark.slow
def test_every_way_to_spread_a_model(tmp_path: Path) -> None:
    """A checkpoint of FSDP2 is read back under ZeRO-3 too."""
    report = gpu_bench(
        Machine(CPU, 2, 240.0), ("sharding", "checkpoints"), tmp_path / "gpu.json", lambda section, row: None
    )
    rows = report["sections"]["sharding"]["rows"]
    assert not [row["error"] for row in rows if "error" in row]
    found = [(row["ranks"], row["step"]["engine"], row["step"]["deepspeed"]["stage"]) for row in rows]
    assert found == [
        (1, "single", 2), (2, "ddp", 2), (2, "fsdp", 2), (2, "fsdp", 2), (2, "deepspeed", 1), (2, "deepspeed", 2),
        (2, "deepspeed", 3),
    ]  # fmt: skip
    assert [row["exposed_communication_share"] is None for row in rows] == [False] * 7
    *passes, verdict = report["sections"]["checkpoints"]["rows"]
    assert [(row["step"]["engine"], row["ranks"]) for row in passes] == [("fsdp", 2), ("fsdp", 1), ("deepspeed", 2)]
    assert verdict["passed"]


@pytest.mark.slow
def test_ranks_go_on_after_a_case_that_failed() -> None:
    good = StepCase(size="pico", micro_batch=1, engine="ddp")
    cases = [RankCase(good, backend="nope", rounds=1), RankCase(good, rounds=1)]
    rows = list(measure(cases, 2, device="cpu", limit=120))
    assert "nope" in rows[0]["error"]
    assert rows[1]["images_per_second"] == pytest.approx(2 / rows[1]["step_seconds"]["median"])


@pytest.mark.slow
def test_scaling_reports_every_world_size() -> None:
    case = StepCase(size="pico", micro_batch=2)
    report = scaling_bench(case, "cpu", ["ddp"], ["weak", "strong"], 2, passes=1, rounds=1)
    found = [(row["kind"], row["engine"], row["ranks"], row["global_batch"]) for row in report["results"]]
    assert found == [
        ("weak", "single", 1, 2),
        ("strong", "single", 1, 2),
        ("weak", "ddp", 2, 4),
        ("strong", "ddp", 2, 2),
    ]
    assert [row["efficiency"] for row in report["results"][:2]] == [1.0, 1.0]


def test_strong_scaling_refuses_a_batch_that_a_world_size_does_not_divide() -> None:
    """Six images over four ranks would be four."""
    with pytest.raises(UserError, match=r"'?6'?.*multiple of 12"):
        scaling_bench(StepCase(size="pico", micro_batch=6), "cpu", ["ddp"], ["strong"], 6)


def test_world_sizes() -> None:
    assert [world_sizes(ranks) for ranks in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("gpu --device cpu --only nope", "--only"),
        ("scaling --kind nope", "--kind"),
        ("scaling --engine single", "--engine"),
        ("scaling --engine deepspeed --zero-stage 4", "deepspeed.stage"),
        ("scaling --ranks 3 --micro-batch 8", "--micro-batch"),
        ("step --size pico --stage probe", "pretrain, finetune"),
    ],
)
def test_mistakes_are_named(arguments: str, named: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*arguments.split(), "--output", str(tmp_path / "report.json")])
    assert isinstance(result.exception, UserError)
    assert named in str(result.exception)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    ["scaling --ranks 1 --kind weak --passes 1", "step --size pico --rounds 1", "gpu --device cpu --only steps"],
)
def test_a_bench_that_measured_nothing_ends_with_1(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No machine holds such a batch; what there is to say of it stands in the file all the same."""
    case = StepCase(size="pico", micro_batch=10**12)
    monkeypatch.setattr("scaling.bench.gpu.step_cases", lambda machine: [case])
    batch = [] if arguments.startswith("gpu") else ["--micro-batch", str(case.micro_batch)]
    output = tmp_path / "bench.json"
    result = CliRunner().invoke(app, [*arguments.split(), *batch, "--output", str(output)])
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    report = json.loads(output.read_text())
    (found,) = [report] if "results" in report else report["sections"]["steps"]["rows"]
    assert found["results"]
    assert all("allocate" in row["error"] for row in found["results"])
