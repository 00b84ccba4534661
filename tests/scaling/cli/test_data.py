"""The data commands say names as they stand: those of folders and classes are the user's."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data.pack import pack
from scaling.cli.data import app
from scaling.errors import UserError
from tests.conftest import draw_shape


def test_names_in_brackets_are_no_markup(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("[red]", "[link]"):
            (tmp_path / "images" / split / kind).mkdir(parents=True)
            draw_shape("circle", generator).save(tmp_path / "images" / split / kind / "0.png")
    shards = tmp_path / "[blue]"
    for command, told in (
        (["pack", f"imagefolder:{tmp_path / 'images'}", str(shards)], "[blue]/train: 2 images"),
        (["verify", str(shards)], "[blue]/train: nothing wrong"),
        (["info", str(shards)], "[link] 1, [red] 1"),
        (["info", str(shards), "--sheet", str(tmp_path / "[bold].png")], "[bold].png"),
    ):
        result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        assert told in result.output


def test_an_output_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images" / "red").mkdir(parents=True)
    draw_shape("circle", np.random.default_rng(0)).save(tmp_path / "images" / "red" / "0.png")
    (tmp_path / "photos.tar").touch()
    source, output = f"imagefolder:{tmp_path / 'images'}", tmp_path / "photos.tar"
    result = CliRunner().invoke(app, ["pack", source, str(output)])
    with pytest.raises(UserError) as raised:
        pack(source, output)
    for error in (result.exception, raised.value):
        assert isinstance(error, UserError)
        assert (error.field, error.valid) == ("OUTPUT", "a folder that can be written")
        assert "Not a directory" in (error.why or "")
