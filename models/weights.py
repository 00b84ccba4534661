"""Weights in files, read safely: safetensors, or torch files with weights_only. No pickle is ever executed.

The native format is safetensors under our names; its header holds the configs, so that a file alone gives the module.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from models.arm import ARM
from models.build import build_on_meta
from models.classifier import Classifier
from models.config import ARConfig, EncoderConfig, MAEConfig, ObjectiveConfig, SupervisedConfig
from models.convert import from_official, to_official
from models.mae import MAE
from models.tables import make_tables
from scaling.errors import UserError
from scaling.files import atomic_write

FORMAT = "armscale"
WEIGHTS = "weights.safetensors"
"""The file of a run folder that holds its final weights."""
UNIVERSAL = "zero"
"""The part of a universal checkpoint of DeepSpeed that holds its tensors."""
FORMATS = ("official", "native", "safetensors")
ZIP = b"PK"
"""How a torch file begins; safetensors have the size of their header there, and then a brace."""
NOTES = ("classes", "mean", "std", "weights")
"""What a run's weights know beside their config, as JSON; evaluations need the mean and deviation of the images."""
KINDS: dict[str, type[ObjectiveConfig]] = {kind.__name__: kind for kind in (ARConfig, MAEConfig, SupervisedConfig)}


def header_of(encoder: EncoderConfig, objective: ObjectiveConfig) -> dict[str, str]:
    """Metadata of a native file."""
    return {
        "format": FORMAT,
        "encoder": json.dumps(dataclasses.asdict(encoder)),
        "objective": json.dumps({"kind": type(objective).__name__} | dataclasses.asdict(objective)),
    }


def read_module(path: Path) -> nn.Module:
    """The ARM, MAE or Classifier in a native file, or in an official checkpoint (.pth, or safetensors of its names).

    A folder stands for the weights in it: a run's, or a universal checkpoint of DeepSpeed with official names. Raises
    UserError for a file that is missing, is neither, or would need unsafe loading.
    """
    if (path / UNIVERSAL).is_dir():
        return from_official(_read_universal(path / UNIVERSAL))
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise UserError("input", str(path), "a checkpoint file")
    if not is_safetensors(path):
        return from_official(_read_torch(path))
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise UserError("input", str(path), "a safetensors file", why=str(error)) from error
    return _native(header, state, path) if header.get("format") == FORMAT else from_official(state)


def is_safetensors(path: Path) -> bool:
    """Whether a file is to be read as safetensors: by how it begins, so that any name will do, and else by its name."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not start.startswith(ZIP))


def notes_of(path: Path) -> dict[str, str]:
    """Those of NOTES that the weights in a file or run folder have: none that did not come from a run of ours."""
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        return {}
    if is_safetensors(path):
        with safe_open(path, framework="pt") as file:
            found = file.metadata()
    else:
        found = _load(path)
        found = found.get(FORMAT) if isinstance(found, dict) else None
    return {name: text for name, text in found.items() if name in NOTES} if isinstance(found, dict) else {}


def write_module(module: nn.Module, path: Path, to: str, notes: dict[str, str] | None = None) -> None:
    """Writes a module, and the `notes` on it, atomically as one of FORMATS.

    `official` is a torch file with the official names under the key `model`, `safetensors` the same names in a
    safetensors file, `native` ours. Raises UserError where the official code has no such model.
    """
    notes = notes or {}
    if to not in FORMATS:
        raise UserError("to", to, FORMATS)
    if path.is_dir():
        raise UserError("output", str(path), "the file to write, not a folder")
    if to == "native":
        assert isinstance(module, ARM | MAE | Classifier)
        state, header = module.state_dict(), header_of(module.encoder.config, module.config) | notes
    else:
        state, header = to_official(module), notes
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(path) as file:
        if to == "official":
            torch.save({"model": state, FORMAT: notes}, file)
        else:
            file.write(save(state, header))


def _load(path: Path) -> Any:
    """What a torch file holds: tensors, plain containers and a Namespace."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:  # by path, a name decides
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, struct.error) as error:
        # Of what is no torch file the unpickler says whatever its first bytes lead to, or nothing.
        why = (str(error) or repr(error)).splitlines()[0]
        raise UserError("input", str(path), "a torch file of tensors alone", why=why) from error


def _read_universal(folder: Path) -> dict[str, Tensor]:
    """The fp32 weights of a universal checkpoint, NAME/fp32.pt for every tensor (DeepSpeed ds_to_universal)."""
    state = {}
    for path in sorted(folder.glob("*/fp32.pt")):
        found = _load(path)
        if not isinstance(found, dict) or not isinstance(found.get("param"), Tensor):
            raise UserError("input", str(path), "a tensor under the key 'param'")
        state[path.parent.name] = found["param"]
    return state


def _read_torch(path: Path) -> dict[str, Tensor]:
    """The state dict of an official checkpoint file, which holds its arguments as a Namespace beside it."""
    found = _load(path)
    state = found.get("model", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError("input", str(path), "a state dict, alone or under the key 'model'")
    return state


def _native(header: dict[str, str], state: dict[str, Tensor], path: Path) -> nn.Module:
    try:
        encoder = EncoderConfig(**json.loads(header["encoder"]))
        objective = json.loads(header["objective"])
        config = KINDS[objective.pop("kind")](**objective)
        module = build_on_meta(encoder, config).module
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError("input", str(path), "a native file of this version", why=repr(error)) from error
    make_tables(module, torch.device("cpu"))
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UserError("input", str(path), "the tensors of its own header", why=str(error)) from error
    return module
