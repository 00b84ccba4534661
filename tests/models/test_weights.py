"""Weight files: safe to read, exact, and refused with a reason."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer import Typer
from typer.testing import CliRunner

import models
from data.imagenet import NORMALIZATION
from models.build import build_objective
from models.config import ARConfig, EncoderConfig, ObjectiveConfig, SupervisedConfig
from models.convert import from_official, to_official
from models.weights import FORMATS, header_of, notes_of, read_module, write_module
from scaling.cli.convert import convert
from scaling.errors import UserError
from scaling.weights import normalization
from tests.models.configs import ALL, AR, LABELLED, encoder, name

PAPER = ARConfig(decoder_width=64)
FINETUNED = encoder(scan_directions=4, class_token=True, positions="learned")


def module_of(config: EncoderConfig, objective: ObjectiveConfig) -> nn.Module:
    return build_objective(config, objective, seed=7).get_submodule("module")


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = (dict(m.named_parameters()) | dict(m.named_buffers()) for m in (found, expected))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(("config", "objective"), ALL, ids=name)
def test_native_files_hold_any_model(tmp_path: Path, config: EncoderConfig, objective: ObjectiveConfig) -> None:
    module = module_of(config, objective)
    write_module(module, tmp_path / "weights.safetensors", "native")
    found = read_module(tmp_path / "weights.safetensors")
    assert type(found) is type(module)
    assert_same(found, module)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(("config", "objective"), [(encoder(), PAPER), (FINETUNED, LABELLED)], ids=name)
def test_command_converts_without_loss(
    tmp_path: Path, config: EncoderConfig, objective: ObjectiveConfig, to: str
) -> None:
    """A run folder -> each format -> native through the command itself."""
    app = Typer()
    app.command()(convert)
    first, middle, last = tmp_path / "weights.safetensors", tmp_path / "b", tmp_path / "c.safetensors"
    middle = middle.with_suffix(".pth" if to == "official" else ".safetensors")
    module = module_of(config, objective)
    write_module(module, first, "native")
    for source, target, format_ in ((tmp_path, middle, to), (middle, last, "native")):
        result = CliRunner().invoke(app, [str(source), str(target), "--to", format_])
        assert result.exit_code == 0, result.output
    assert_same(read_module(last), module)


def test_official_file_is_what_the_official_code_loads(tmp_path: Path) -> None:
    module = module_of(FINETUNED, LABELLED)
    write_module(module, tmp_path / "arm.pth", "official")
    state = torch.load(tmp_path / "arm.pth", weights_only=True)["model"]
    expected = to_official(module)
    assert state.keys() == expected.keys()
    assert state["layers.0.mixer.conv1d_c.weight"].shape == (32, 1, 4)


def test_official_checkpoints_with_arguments_are_read_safely(tmp_path: Path) -> None:
    """The official file holds an argparse.Namespace beside the weights."""
    module = module_of(FINETUNED, LABELLED)
    whole = {"model": to_official(module), "epoch": 3, "args": argparse.Namespace(lr=1e-3), "optimizer": {"state": {}}}
    torch.save(whole, tmp_path / "checkpoint.pth")
    assert_same(read_module(tmp_path / "checkpoint.pth"), module)
    torch.save(to_official(module), tmp_path / "bare.pth")
    assert_same(read_module(tmp_path / "bare.pth"), module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_compute(tmp_path: Path, dtype: torch.dtype) -> None:
    """Published weights are often halved; a loaded module takes float32 images, a converted one keeps its bits."""
    config, objective = FINETUNED, SupervisedConfig(classes=10, head_std=1.0)
    state = {name: tensor.to(dtype) for name, tensor in to_official(module_of(config, objective)).items()}
    torch.save({"model": state}, tmp_path / "arm.pth")
    expected = from_official({name: tensor.float() for name, tensor in state.items()}).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(models.load(tmp_path / "arm.pth")(images), expected(images))
    write_module(read_module(tmp_path / "arm.pth"), tmp_path / "again.pth", "official")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert all(torch.equal(again[name], tensor) and again[name].dtype == dtype for name, tensor in state.items())


class Evil:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_code_in_files_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": {"weight": Evil(tmp_path / "harm")}}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="tensors alone"):
        read_module(tmp_path / "evil.pth")
    assert not (tmp_path / "harm").exists()


def test_refusals_name_the_reason(tmp_path: Path) -> None:
    module = module_of(encoder(), AR)
    with pytest.raises(UserError, match=r"to: 'onnx'.*official, native, safetensors"):
        write_module(module, tmp_path / "x", "onnx")
    with pytest.raises(UserError, match="paper's clusters"):
        write_module(module, tmp_path / "x", "official")
    with pytest.raises(UserError, match="encoder"):
        write_module(module_of(encoder("vit"), PAPER), tmp_path / "x", "official")
    with pytest.raises(UserError, match=r"pooling: 'class_token'.*mean"):  # it would be read back as another model
        write_module(module_of(FINETUNED, SupervisedConfig(pooling="class_token")), tmp_path / "x", "safetensors")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="not a folder"):
        write_module(module, tmp_path, "native")
    with pytest.raises(UserError, match="a checkpoint file"):
        read_module(tmp_path / "absent.pth")
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 5)
    with pytest.raises(UserError, match="a safetensors file"):
        read_module(tmp_path / "torn.safetensors")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="tensors alone"):
        read_module(tmp_path / "torn.pth")


@pytest.mark.parametrize("to", FORMATS)
def test_converted_weights_know_what_images_they_want(tmp_path: Path, to: str) -> None:
    """Those of a run, through the command to each format and on to native; evaluated under other constants, the
    weights of a run on shapes fell from 64 to 35 %."""
    app = Typer()
    app.command()(convert)
    notes = {"classes": '["a", "b"]', "mean": "[0.1, 0.2, 0.3]", "std": "[0.5, 0.6, 0.7]", "weights": "ema"}
    write_module(module_of(FINETUNED, LABELLED), tmp_path / "weights.safetensors", "native", notes)
    for source, target, format_ in ((tmp_path, tmp_path / "a", to), (tmp_path / "a", tmp_path / "b", "native")):
        assert CliRunner().invoke(app, [str(source), str(target), "--to", format_]).exit_code == 0
        assert notes_of(target) == notes
        assert normalization(target) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    write_module(module_of(FINETUNED, LABELLED), tmp_path / "c", to)
    assert normalization(tmp_path / "c") == NORMALIZATION


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("named", ["weights.safetensors", "weights.pth", "weights"])
def test_any_name_will_do(tmp_path: Path, named: str, to: str) -> None:
    """What a file is shows in its first bytes, as nothing keeps a user from `--to native arm.pth`."""
    module = module_of(FINETUNED, LABELLED)
    write_module(module, tmp_path / named, to)
    assert_same(read_module(tmp_path / named), module)


@pytest.mark.parametrize("start", [b"", b"<html>", b"version https://git-lfs", b"\x80\x02h\x05.", b"j", b"G", b"R."])
def test_what_is_no_torch_file_is_refused(tmp_path: Path, start: bytes) -> None:
    """The unpickler fails in a way of its own on each of these."""
    (tmp_path / "arm.pth").write_bytes(start)
    with pytest.raises(UserError, match=r"arm\.pth.*tensors alone"):
        read_module(tmp_path / "arm.pth")


def test_universal_folder_is_read_safely(tmp_path: Path) -> None:
    module = module_of(FINETUNED, LABELLED)
    for key, tensor in to_official(module).items():
        (tmp_path / "zero" / key).mkdir(parents=True)
        torch.save({"param": tensor, "cat_dim": 0}, tmp_path / "zero" / key / "fp32.pt")
    assert_same(read_module(tmp_path), module)
    for found, told in (({"param": Path("x")}, "tensors alone"), ({"tensor": torch.ones(1)}, "param")):
        torch.save(found, tmp_path / "zero" / "head.weight" / "fp32.pt")
        with pytest.raises(UserError, match=told):
            read_module(tmp_path)


def test_native_file_with_another_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    module = module_of(encoder(), AR)
    write_module(module, path, "native")
    state = load_file(path)
    other = {"format": "armscale", "encoder": '{"image_size": 192}', "objective": '{"kind": "ARConfig"}'}
    save_file(state, path, other)
    with pytest.raises(UserError, match="its own header"):
        read_module(path)
    save_file(state, path, {"format": "armscale", "encoder": "{}"})
    with pytest.raises(UserError, match="this version"):
        read_module(path)
    for header in ({"objective": "null"}, {"encoder": '{"width": "64"}'}, {"encoder": '{"depth": null}'}):
        save_file(state, path, header_of(module.encoder.config, module.config) | header)
        with pytest.raises(UserError, match="native file of this version"):
            read_module(path)
