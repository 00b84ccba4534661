"""What YAML says, in files and in key=value."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from scaling.config import ResourcesConfig
from scaling.errors import UserError
from scaling.reading import load_run, load_yaml, merge


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:00:00", "12:00:00"), ("2:00:00", "2:00:00"), ("04:00:00", "04:00:00"), ("90:00", "90:00"),
        ("1:30.5", "1:30.5"), ("2-12:00:00", "2-12:00:00"),
        ("90", 90), ("1_000", 1000), ("0x10", 16), ("1.5", 1.5), ("-1.0e-3", -0.001), (".inf", float("inf")),
        ("yes", True), ("a: b", {"a": "b"}),
    ],
)  # fmt: skip
def test_times_are_text_and_numbers_numbers(tmp_path: Path, text: str, value: Any) -> None:
    """YAML 1.1 reads 12:00:00 as a number to base 60, which Slurm would take for 43,200 minutes."""
    (tmp_path / "file.yaml").write_text(f"key: {text}" if ": " not in text else f"key:\n  {text}")
    assert load_yaml(tmp_path / "file.yaml") == {"key": value}


@pytest.mark.parametrize("study", ["../elsewhere", "a/b", "/tmp/x"])
def test_a_run_stays_under_the_root(tmp_path: Path, study: str) -> None:
    (tmp_path / "config.yaml").write_text("size: pico\n")
    with pytest.raises(UserError, match=r"study.*names a folder"):
        load_run(tmp_path / "config.yaml", [f"study={study}"])


def test_times_in_overrides(tmp_path: Path) -> None:
    merged = merge(ResourcesConfig, {}, ["time=12:00:00", "nodes=2"])
    assert dataclasses.asdict(merged) | {"time": "12:00:00", "nodes": 2} == dataclasses.asdict(merged)
