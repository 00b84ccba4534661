"""A checkpoint that DeepSpeed itself wrote and made universal becomes weights of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.build import build_objective
from models.weights import read_module, write_module
from tests.models.configs import LABELLED, encoder
from tests.scaling.runs import environment
from tests.scaling.test_quickstart import armscale


def run(*arguments: str | Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], env=environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_weights_of_a_zero_run(tmp_path: Path) -> None:
    """A step under ZeRO-2 moves every weight; the universal checkpoint of it gives those weights, to the bit."""
    config = encoder(scan_directions=4, class_token=True, positions="learned")
    before = build_objective(config, LABELLED, seed=7).get_submodule("module")
    write_module(before, tmp_path / "start.pth", "official")
    run("tests.scaling.engines.universal", tmp_path / "start.pth", tmp_path)
    saved, universal = tmp_path / "saved" / "last", tmp_path / "universal"
    convert = ("deepspeed.checkpoint.ds_to_universal", "--input_folder", saved, "--output_folder", universal)
    run(*convert, "--inject_missing_state")
    ended = armscale("convert", universal, tmp_path / "ours.safetensors", "--to", "native", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = read_module(tmp_path / "ours.safetensors").state_dict()
    expected = read_module(tmp_path / "expected.pth").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not any(torch.equal(found[name], tensor) for name, tensor in before.state_dict().items())
