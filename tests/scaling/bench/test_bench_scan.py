"""The parallel baseline against the definition, how rounds are interleaved, and the command from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from models.scan import reference
from scaling.bench import parallel_scan
from scaling.bench.timing import interleave, ratio, summarize
from scaling.cli.bench import app
from scaling.errors import UserError
from tests.models.scan.cases import cast, scan_inputs


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 13, 16, 37])
def test_prefix_sum_of_any_length(length: int, backwards: bool) -> None:
    a, h = torch.rand(2, length, 3, dtype=torch.float64)
    expected, carried = torch.empty_like(h), torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(length)) if backwards else range(length):
        carried = a[t] * carried + h[t]
        expected[t] = carried
    parallel_scan.prefix_sum_(a.clone(), h, backwards)
    torch.testing.assert_close(h, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 6, 16, 21])
def test_parallel_baseline_is_the_scan(length: int) -> None:
    inputs = cast(scan_inputs(2, length, 5, state=3), torch.float64)
    leaves = [x.requires_grad_() for x in inputs[:8] if x is not None]
    out, expected = parallel_scan.selective_scan(inputs), reference.selective_scan(inputs)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    wanted = torch.autograd.grad(expected.square().sum(), leaves)
    for gradient, value in zip(torch.autograd.grad(out.square().sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-9, atol=1e-9)


def test_rounds_are_interleaved_and_rotated() -> None:
    calls: list[str] = []
    timings = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, shortest=0.0)
    assert calls == list("aabbcc" + "abc" + "bca" + "cab")
    assert [len(timing.rounds) for timing in timings.values()] == [3, 3, 3]


def test_a_ratio_is_taken_within_each_round() -> None:
    """A round that was slow for both does not move it."""
    assert ratio(summarize([2.0, 20.0, 2.0]), summarize([1.0, 10.0, 1.0])).rounds == (2.0, 2.0, 2.0)


def test_quartiles_lie_among_the_rounds() -> None:
    assert summarize([0.01, 0.05]).row() == pytest.approx({"median": 0.03, "low": 0.02, "high": 0.04, "rounds": 2})
    assert summarize([5.0, 1.0, 2.0, 4.0, 3.0]).row() == {"median": 3.0, "low": 2.0, "high": 4.0, "rounds": 5}


def test_command_writes_medians_and_ratios(tmp_path: Path) -> None:
    output = tmp_path / "scan.json"
    arguments = "scan --batch 1 --length 9 --channels 16 --rounds 2 --backend torch --baseline parallel,reference"
    result = CliRunner().invoke(app, [*arguments.split(), "--output", str(output)])
    assert result.exit_code == 0, result.output
    report = json.loads(output.read_text())
    assert [row["name"] for row in report["results"]] == ["torch", "baseline parallel", "baseline reference"]
    torch_row = report["results"][0]
    assert torch_row["forward_backward"]["median"] > torch_row["forward"]["median"] > 0
    assert set(torch_row["times_faster_than"]) == {"baseline parallel", "baseline reference"}
    assert all(row["times_faster_than"][row["name"]]["median"] == 1.0 for row in report["results"][1:])
    assert report["ceilings"]["bytes_per_second"] > 0


@pytest.mark.parametrize(
    "arguments",
    ["--backend nope", "--baseline nope", "--dtype float16", "--channels 0", "--directions 2", "--device x"],
)
def test_mistakes_are_named(arguments: str) -> None:
    result = CliRunner().invoke(app, ["scan", "--length", "4", "--batch", "1", "--rounds", "1", *arguments.split()])
    assert isinstance(result.exception, UserError)
    assert arguments.split()[0] in str(result.exception)
