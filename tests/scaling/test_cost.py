"""Costs and utilisation against hand-computed numbers."""

import dataclasses
from pathlib import Path

import pytest
import torch

from scaling import rundir
from scaling.config import PRETRAIN, RunConfig, stage_images
from scaling.cost import cost, utilisation
from scaling.devices import Device
from scaling.environment import device_name
from scaling.errors import UserError
from scaling.execute import execute
from scaling.reading import load_run
from tests.scaling.runs import STEPS, small_config, write_run


def test_base_pretraining_is_the_sheets() -> None:
    """99.43 M parameters, 79.93 M of them encoder; 10.3 + 2.5 G multiply-accumulates an image (sheet 1.1)."""
    config = RunConfig(train=dataclasses.replace(PRETRAIN, epochs=1600, base_lr=1.5e-4))
    price = cost(config, 1_281_167, 1000)
    assert (price.parameters, price.encoder_parameters, price.tokens_per_image) == (99_427_328, 79_934_208, 128)
    forward_macs = (price.flops_per_image + price.scan_flops_per_image) / 6
    assert forward_macs == pytest.approx(12.8e9, rel=0.01)
    assert price.images == 1600 * 1_281_167 // 2048 * 2048
    assert cost(config, None, 1000).train_flops is None


def test_images_are_whole_steps() -> None:
    assert stage_images(dataclasses.replace(PRETRAIN, images=100, global_batch=32), None) == 96
    assert stage_images(dataclasses.replace(PRETRAIN, epochs=1.5, global_batch=32), 100) == 128
    assert stage_images(dataclasses.replace(PRETRAIN, epochs=0.1, global_batch=32), 100) == 32


@pytest.mark.slow
def test_a_run_with_an_impossible_utilisation_keeps_its_results(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figure is refused once and left blank; the work is done and stays."""
    name = device_name(torch.device("cpu"))
    monkeypatch.setattr("scaling.devices.DEVICES", {name: Device(1e9, 1.0, 1.0)})
    folder = write_run(small_config(shards), tmp_path)
    summary = rundir.read_json(execute(load_run(folder / rundir.CONFIG), folder)) or {}
    assert (summary["mfu"], summary["images_per_second_per_device"] > 0) == (None, True)
    rows = rundir.read_lines(folder / rundir.METRICS)[0]
    assert [row["mfu"] for row in rows] == [None] * STEPS
    assert capsys.readouterr().err.count("refused: mfu") == 1


def test_utilisation() -> None:
    assert utilisation(1e12, 494.5, "NVIDIA H100 80GB HBM3", "bf16") == pytest.approx(0.5)
    assert utilisation(1e12, 100, "a processor", "bf16") is None
    with pytest.raises(UserError, match="mfu"):
        utilisation(1e12, 1000, "NVIDIA H100 80GB HBM3", "bf16")
