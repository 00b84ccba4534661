"""armscale collect, fit and report as a user calls them: files, exit status, one clear message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import analysis
from tests.analysis.folders import write_study

ROOT = Path(analysis.__file__).resolve().parents[1]


def armscale(
    *arguments: object, code: str = "from scaling.cli import main; main()"
) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.argv = ['armscale', *sys.argv[1:]]; {code}"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=300
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    result = armscale("collect", write_study(folder, seeds=(0, 1)), "--output", folder / "tables")
    assert result.returncode == 0, result.stderr
    assert "36 completed runs of 36, 0 left out" in result.stdout
    return folder / "tables"


def test_fit_writes_one_object_a_group(tables: Path, tmp_path: Path) -> None:
    result = armscale(
        "fit", tables / "runs.csv", "--law", "power", "--x", "parameters", "--y", "top1_error", "--group", "strategy",
        "--exclude", "protocol != 'finetune'", "--output", tmp_path / "fit.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    groups = json.loads((tmp_path / "fit.json").read_text())["groups"]
    assert set(groups) == {"ar", "mae", "supervised", "scratch"}
    assert groups["ar"]["n"] == 6
    assert groups["ar"]["parameters"]["c"]["value"] < 0
    assert "95 %" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--law", "cubic", "--x", "parameters", "--y", "top1_error"), "isoflop"),
        (("--law", "power", "--x", "weight", "--y", "top1_error"), "no such column"),
        (("--law", "power-floor", "--x", "parameters", "--y", "top1_error"), "at least 4 distinct x"),
        (("--law", "power", "--x", "parameters", "--y", "final_loss"), "mixed: ar, classification, mae"),
    ],
)
def test_a_fit_that_must_be_refused_exits_with_2_and_says_why(
    tables: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = armscale("fit", tables / "runs.parquet", *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_report(tables: Path, tmp_path: Path) -> None:
    result = armscale("report", tables, "--output", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "report" / "index.html").is_file()


def test_fit_and_help_need_no_torch(tables: Path) -> None:
    code = (
        "\ntry:\n    from scaling.cli import main; main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    arguments = ("--law", "power", "--x", "parameters", "--y", "top1_error", "--exclude", "strategy != 'ar'")
    for call in (("fit", tables / "runs.csv", *arguments), ("--help",)):
        assert armscale(*call, code=code).stderr.strip().endswith("False")
