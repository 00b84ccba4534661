"""The Triton kernels compile for a GPU that is not here, and their code is what the kernels were written for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("triton", reason="triton is not installed")

from scaling.bench.compile_only import innermost_loop
from scaling.cli.bench import app
from scaling.errors import UserError

INSTRUCTIONS = {(128, 1): 21.6, (197, 1): 22.5, (197, 4): 22.0}
"""A state step of the scan's backward, by length and directions; where the length is no multiple of four, loads have
masks."""
SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E R2, [R4.64] ;
        /*0020*/                   FMUL R3, R2, R2 ;
        /*0030*/                   MUFU.EX2 R3, R3 ;
        /*0040*/               @P0 BRA 0x20 ;
        /*0050*/               @P1 BRA 0x10 ;
        /*0060*/                   EXIT ;
"""


def test_innermost_loop_of_a_listing() -> None:
    assert [text.split()[0] for text in innermost_loop(SASS)] == ["FMUL", "MUFU.EX2", "BRA"]


def test_code_without_a_loop_is_taken_whole() -> None:
    assert len(innermost_loop(SASS.replace("BRA 0x20", "BRA 0x60").replace("BRA 0x10", "BRA 0x60"))) == 7


@pytest.mark.slow
def test_kernels_for_hopper(tmp_path: Path) -> None:
    """No shuffle in a scan, no spills, and no more instructions than today."""
    output = tmp_path / "kernels.json"
    result = CliRunner().invoke(app, ["scan", "--compile-only", "sm_90", "--output", str(output)])
    assert result.exit_code == 0, result.output
    rows = json.loads(output.read_text())["kernels"]
    assert [(row["length"], row["directions"]) for row in rows[::4]] == [(128, 1), (197, 1), (197, 4)]
    for row in rows:
        assert row["local_bytes"] == 0, row
        assert row["registers"] <= 255
        if row["kernel"] == "scan_forward":
            assert row["shuffles"] == 0
            assert 1 <= row["exponentials"] <= 1.2
            assert row["instructions"] <= 7.7  # of a whole chunk, with the stores of its kept state
        if row["kernel"] == "scan_backward":
            assert row["shuffles"] == 0
            assert row["instructions"] <= INSTRUCTIONS[row["length"], row["directions"]]
        if row["kernel"] == "conv_backward":
            assert row["instructions"] <= 52


def test_an_architecture_that_is_none() -> None:
    result = CliRunner().invoke(app, ["scan", "--compile-only", "hopper"])
    assert isinstance(result.exception, UserError)
    assert "sm_90" in str(result.exception)
