"""Where a command is to write: refused before its work where that cannot be, not at the end with the work lost."""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer

from scaling.errors import UserError


def output_file(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """Callback of an option or argument that names a file to write."""
    if path is not None:
        if path.is_dir():
            raise UserError(_name(param), str(path), "a file that can be written", why="it is a folder")
        _require_room(param, path, path.parent, "a file that can be written")
    return path


def output_folder(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """Callback of an option or argument that names a folder to fill."""
    if path is not None:
        _require_room(param, path, path, "a folder that can be written")
    return path


def packed_folder(param: typer.CallbackParam, path: Path) -> Path:
    """As output_folder, but what is there may be complete, and others' that we only read."""
    if not path.is_dir():
        output_folder(param, path)
    return path


def _require_room(param: typer.CallbackParam, path: Path, folder: Path, valid: str) -> None:
    """UserError where nothing can be made in the nearest folder that exists; makes none itself."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(_name(param), str(path), valid, why=f"{folder}: {error.strerror}") from None


def _name(param: typer.CallbackParam) -> str:
    """As the user writes it: OUTPUT or --output."""
    return (param.name or "").upper() if param.param_type_name == "argument" else param.opts[0]
