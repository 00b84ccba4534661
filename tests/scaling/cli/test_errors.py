"""The command line: starts without torch, and every mistake is one message and exit status 2."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer import rich_utils
from typer.testing import CliRunner

from scaling import cli, rundir
from scaling.attempt import Attempt
from scaling.cli import commands
from tests.scaling.runs import command, environment, small_config, write_run
from tests.scaling.test_quickstart import armscale, tiny_study

HOME = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("command", "none_of", "told"),
    [
        (
            ["--help"],
            {"torch", "pandas", "scipy", "matplotlib", "numpy", "omegaconf"},
            ("data", "run", "study", "collect", "fit", "report", "bench", "convert", "doctor"),
        ),
        (["study", "plan", "quickstart"], {"torch", "pandas", "scipy", "matplotlib"}, ("quickstart: 18 runs",)),
        (["study", "status", "quickstart"], {"torch", "pandas", "scipy", "matplotlib"}, ("18 planned",)),
    ],
)
def test_what_shows_imports_nothing_heavy(
    command: list[str], none_of: set[str], told: tuple[str, ...], tmp_path: Path
) -> None:
    code = (
        f"import sys; sys.argv = ['armscale', *{command}]\n"
        "from scaling.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        f"heavy = {none_of} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = os.environ | {"PYTHONPATH": str(HOME), "PYTHONSAFEPATH": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    for words in told:
        assert words in ended.stdout


def every_command(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, part in getattr(command, "commands", {}).items():
        yield from every_command(part, (*words, name))


def test_every_help_has_an_example() -> None:
    app = typer.Typer()
    app.info.epilog = cli.app.info.epilog
    commands.register(app)
    found = list(every_command(typer.main.get_command(app)))
    assert {(), ("study",), ("study", "retry"), ("bench", "gpu"), ("plan-next",)} <= set(found)
    for words in found:
        told = CliRunner().invoke(app, [*words, "--help"])
        assert (told.exit_code, "Example: armscale " + " ".join(words) in told.stdout) == (0, True), words


def test_every_help_says_what_is_written_for_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets in a help are markup to what prints it, and may vanish."""
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", 400)
    app = typer.Typer(rich_markup_mode=cli.app.rich_markup_mode)
    commands.register(app)
    whole = typer.main.get_command(app)
    for words in every_command(whole):
        told = CliRunner().invoke(app, [*words, "--help"]).stdout
        command = whole
        for word in words:
            command = command.commands[word]  # type: ignore[attr-defined]
        for option in command.params:
            assert (option.help or "") in told, (words, option.name)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["study", "plan", "nothing"], ["STUDY", "nothing", "quickstart"]),
        (["study", "launch", "quickstart"], ["data.shards", "armscale data pack fashion-mnist shards/fashion-mnist"]),
        (["study", "launch", "quickstart", "--cluster", "cloud"], ["--cluster", "cloud", "local"]),
        (["run", "nothing.yaml"], ["file", "nothing.yaml"]),
        (["data", "pack", "imagenet21k", "shards/x"], ["imagenet21k", "fashion-mnist", "cifar10", "imagefolder:DIR"]),
        (["data", "pack", "imagefolder:nothing", "shards/x"], ["nothing"]),
        (["data", "verify", "nothing"], ["nothing"]),
        (["report", "nothing", "--output", "out"], ["nothing"]),
        (["bench", "scaling", "--engine", "ddp,zero"], ["--engine", "ddp,zero", "deepspeed"]),
        (["bench", "step", "--micro-batch", "0"], ["--micro-batch"]),
        (["fit", "x.csv", "--law", "power", "--x", "x", "--y", "y", "--seed", "-1"], ["--seed"]),
    ],
)
def test_mistakes_exit_2_with_one_message(arguments: list[str], told: list[str], tmp_path: Path) -> None:
    ended = armscale(*arguments, cwd=tmp_path)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    for part in told:
        assert part in ended.stderr
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("fit points.csv --law power --x x --y y --output", "--output"),
        ("collect . --output", "--output"),
        ("report . --output", "--output"),
        ("plan-next points.csv --budget 1 --output", "--output"),
        ("bench scan --output", "--output"),
        ("evaluate run shards --output", "--output"),
        ("convert run --to native", "OUTPUT"),
        ("data pack imagefolder:images", "OUTPUT"),
        ("data info shards --sheet", "--sheet"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_the_work(arguments: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("x,y\n1,2\n2,3\n4,5\n8,9\n")
    (tmp_path / "images" / "train" / "one").mkdir(parents=True)
    ended = armscale(*arguments.split(), "points.csv/result", cwd=tmp_path)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.startswith(f"armscale: {name}: 'points.csv/result'")
    assert "Traceback" not in ended.stderr


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    ended = armscale("evaluate", "run", "shards", "--output", ".", cwd=tmp_path)
    assert (ended.returncode, "it is a folder" in ended.stderr) == (2, True)


def test_an_intruding_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("")
    command = [sys.executable, "-c", "from scaling.cli import main; main()", "--help"]
    environment = {"PYTHONPATH": f"{tmp_path}:{HOME}", "PATH": ""}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert str(tmp_path / "data") in ended.stderr


def test_one_class_is_refused_by_stages_that_use_labels(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(32):
        folder = tmp_path / "images" / "train" / "only"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "images" / "val").mkdir()
    (tmp_path / "images" / "train").rename(tmp_path / "images" / "train")
    import shutil

    shutil.copytree(tmp_path / "images" / "train" / "only", tmp_path / "images" / "val" / "only")
    packed = armscale("data", "pack", f"imagefolder:{tmp_path / 'images'}", "packed", cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    study = tiny_study(
        tmp_path,
        tmp_path / "packed",
        axes={"strategy": ["scratch"], "size": ["pico"], "seed": [0]},
        rules=[],
    )
    launched = armscale("study", "launch", study, cwd=tmp_path)
    assert launched.returncode == 2, launched.stdout + launched.stderr
    assert "two classes" in launched.stderr


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (("data", "pack", "imagefolder:{images}", "{out}/packed"), "shard-000000.tar"),
        (("study", "launch", "{study}", "--root", "{out}"), "study.yaml"),
    ],
)
def test_a_disk_that_refuses_is_one_message(command: tuple[str, ...], file: str, tmp_path: Path, shards: Path) -> None:
    """Here by a limit on the length of a file, with the same path through the program as a full disk."""
    places = {"images": shards.parent / "images", "out": tmp_path, "study": tiny_study(tmp_path, shards)}
    words = [word.format(**places) for word in command]
    limited = ["prlimit", "--fsize=256", sys.executable, "-m", "scaling.cli", *words]
    environment = os.environ | {"PYTHONPATH": str(HOME), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(limited, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"{file}' is not valid (File too large)" in ended.stderr


def test_a_config_that_is_no_text_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"name: \xff\n")
    told = armscale("run", "config.yaml", cwd=tmp_path)
    assert (told.returncode, "YAML in UTF-8" in told.stderr) == (2, True), told.stderr


def test_a_run_that_another_process_takes_over_ends_in_one_line(tmp_path: Path, shards: Path) -> None:
    folder = write_run(small_config(shards, images=1600), tmp_path)
    with subprocess.Popen(command(folder), env=environment(), stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        while not rundir.read_lines(folder / rundir.METRICS)[0]:
            assert first.poll() is None
            time.sleep(0.05)
        Attempt.claim(folder)
        told = first.stderr.read()
    assert first.returncode == 1, told
    assert "Traceback" not in told
    assert told.endswith(f"stopped: attempt 1 of {folder.name} stops: a newer attempt has taken over\n")
