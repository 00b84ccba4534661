"""The model card says what the run folder says, and its example runs."""

import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

import models
from models.weights import WEIGHTS
from scaling import files, rundir
from scaling.card import CARD
from scaling.cli.convert import convert
from scaling.execute import execute
from scaling.reading import load_run
from tests.scaling.runs import small_config, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A classifier trained for six steps, with its average."""
    config = small_config(shards, stage="finetune", strategy="scratch", mixup=0.0, cutmix=0.0, randaugment="")
    folder = write_run(config, tmp_path_factory.mktemp("card"))
    execute(load_run(folder / rundir.CONFIG), folder)
    return folder


def test_numbers_are_the_runs(run: Path) -> None:
    card = (run / "README.md").read_text()
    summary = rundir.read_json(run / rundir.SUMMARY)
    rows, _ = rundir.read_lines(run / rundir.EVALUATIONS)
    assert summary is not None
    assert card.startswith(f"# {run.name}\n")
    for row in rows:
        assert f"| {row['weights']} | {row['top1']:.2%} | {row['top5']:.2%} | {row['loss']:.4f} | 48 |" in card
    for text in (f"{summary['parameters']:,} parameters", f"{summary['train_flops']:.3g} operations", "96 images"):
        assert text in card
    for text in ("circle, cross, square", "lr: 0.001", "global_batch: 16", "averaged weights"):
        assert text in card


def test_no_kill_leaves_a_completed_run_without_it(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sees a summary finds the card: the process ends here at every file that it writes after the weights."""
    folder = write_run(small_config(shards, images=16), tmp_path)
    config, write, written = load_run(folder / rundir.CONFIG), files.write_text, 0

    def counted(path: Path | str, text: str) -> None:
        nonlocal written
        if (folder / WEIGHTS).exists():
            written += 1
        if written == moment:
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(files, "write_text", counted)
    for moment in (1, 2, 3):  # noqa: B007  # `counted` reads it
        written = 0
        (folder / WEIGHTS).unlink(missing_ok=True)
        with suppress(KeyboardInterrupt):
            execute(config, folder)
        assert (folder / CARD).exists() >= (folder / rundir.SUMMARY).exists()
    assert (folder / rundir.SUMMARY).exists()


def test_its_example_gives_the_module(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"^    (.*)$", (run / "README.md").read_text(), flags=re.MULTILINE)
    monkeypatch.chdir(run)
    names: dict[str, object] = {"images": torch.zeros(2, 3, 32, 32)}
    exec("\n".join(code), names)
    logits, features = names["logits"], names["features"]
    assert isinstance(logits, torch.Tensor)
    assert isinstance(features, torch.Tensor)
    assert (logits.shape, features.shape) == ((2, 3), (2, 32))


def test_load_is_ready_and_lazy(run: Path) -> None:
    assert not models.load(run).training
    with pytest.raises(Exception, match="a checkpoint file"):
        models.load(run / "absent.safetensors")


def test_a_converted_run_takes_its_card_along(run: Path, tmp_path: Path) -> None:
    app = Typer()
    app.command()(convert)
    result = CliRunner().invoke(app, [str(run), str(tmp_path / "model.safetensors"), "--to", "native"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "model.md").read_text() == (run / "README.md").read_text()
    assert type(models.load(tmp_path / "model.safetensors")).__name__ == "Classifier"
