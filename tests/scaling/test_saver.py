"""What stays of a run's checkpoints when the newest of them cannot be read and training goes on from one before."""

import dataclasses
import logging
import resource
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.weights import WEIGHTS
from scaling import rundir
from scaling.attempt import Attempt, Superseded
from scaling.checkpoint import (
    COMMIT,
    Counters,
    clear_unfinished,
    committed,
    discard_unread,
    load_latest,
    step_name,
    step_of,
)
from scaling.config import TrainConfig
from scaling.environment import Rank
from scaling.errors import UserError
from scaling.execute import execute
from scaling.reading import load_run
from scaling.saver import Saver
from tests.scaling.runs import STEPS, carry_out, curve, small_config, write_run


class Killed(BaseException):
    """Stands for the end of the process."""


def state(step: int) -> dict[str, Tensor]:
    return {"model.weight": torch.full((8,), float(step))}


def go_on(run: Path, *steps: int, keep: int = 2, every: int = 0) -> int:
    """A new attempt that reads what it can, saves at `steps` and ends; the step that it went on from."""
    saver = Saver(Attempt.claim(run), TrainConfig(keep_checkpoints=keep, keep_every=every))
    tensors = state(-1)
    read = load_latest(run, tensors)
    if read is not None:
        saver.newest = read.step
        assert torch.equal(tensors["model.weight"], state(read.step)["model.weight"])
    try:
        for step in steps:
            saver.commit(state(step), Counters(step))
    finally:
        saver.close()
    return -1 if read is None else read.step


def damage(run: Path, *steps: int) -> None:
    for step in steps:
        for part in (run / rundir.CHECKPOINTS / step_name(step)).glob("*.distcp"):
            part.write_bytes(part.read_bytes()[:100])


def kept(run: Path) -> list[int]:
    return [step_of(path) for path in committed(run)]


@pytest.mark.parametrize(
    ("keep", "every", "first", "damaged", "then", "left"),
    [
        (2, 100, [100, 190, 200], [190, 200], [150], [100, 150]),
        (1, 0, [200], [], [250], [250]),
        (2, 0, [100, 200], [200], [150], [100, 150]),
        (2, 0, [100, 190, 200], [190, 200], [200], [100, 200]),  # the one in between is no better
        (2, 0, [100, 190, 200], [190, 200], [210], [100, 210]),
        (3, 0, [100, 190, 200], [190, 200], [150, 160, 170], [150, 160, 170]),
        (2, 100, [90, 100, 110], [100, 110], [105], [90, 105]),
    ],
)
def test_what_could_not_be_read_does_not_count_as_kept(
    tmp_path: Path, keep: int, every: int, first: list[int], damaged: list[int], then: list[int], left: list[int]
) -> None:
    go_on(tmp_path, *first, keep=9)
    damage(tmp_path, *damaged)
    assert go_on(tmp_path, *then, keep=keep, every=every) == max(set(first) - set(damaged))
    assert kept(tmp_path) == left
    assert go_on(tmp_path) == then[-1]


def test_one_alone_that_is_kept_is_the_one_that_can_be_read(tmp_path: Path) -> None:
    """It is left by a save that a kill kept from clearing up, and the one after it is damaged."""
    go_on(tmp_path, 100, 200, keep=2)
    damage(tmp_path, 200)
    assert go_on(tmp_path, 150, keep=1) == 100
    assert kept(tmp_path) == [150]
    assert go_on(tmp_path) == 150


def test_an_attempt_without_a_commit_leaves_them(tmp_path: Path) -> None:
    """What could not be read may be readable for the next: a file system that was away."""
    go_on(tmp_path, 100, 200)
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*.distcp")}
    damage(tmp_path, 200)
    assert go_on(tmp_path) == 100
    for path, content in whole.items():
        path.write_bytes(content)
    assert go_on(tmp_path) == 200


def flip_a_bit(path: Path) -> None:
    """In a file of tensors one within a tensor, which torch reads without noticing."""
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_or_lost_file_is_named_and_the_one_before_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of any file that the marker lists, which are all; torch itself reads the bit, and logs tracebacks of the loss."""
    go_on(tmp_path, 100, 200)
    newest = tmp_path / rundir.CHECKPOINTS / step_name(200)
    files = sorted(path for path in newest.iterdir() if path.name != COMMIT)
    assert [path.name for path in files] == [".metadata", "__0_0.distcp", "counters.json"]
    for path in files:
        whole = path.read_bytes()
        flip_a_bit(path)
        assert go_on(tmp_path) == 100
        assert f"{path.name} is not as it was committed" in capsys.readouterr().err
        path.unlink()
        assert go_on(tmp_path) == 100
        assert f"{path.name}: No such file" in capsys.readouterr().err
        path.write_bytes(whole)
        assert go_on(tmp_path) == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_checkpoint_of_before_checksums_is_read(tmp_path: Path) -> None:
    go_on(tmp_path, 100)
    marker = tmp_path / rundir.CHECKPOINTS / step_name(100) / COMMIT
    marker.write_text('{"attempt": 1, "seconds": 0.1}')
    assert go_on(tmp_path) == 100


@pytest.mark.slow
def test_what_one_rank_finds_damaged_no_rank_reads(tmp_path: Path, shards: Path) -> None:
    """The two go back together."""
    folder = write_run(dataclasses.replace(small_config(shards), engine="fsdp"), tmp_path)
    whole = curve(carry_out(folder, ranks=2))
    (folder / rundir.SUMMARY).unlink()
    *_, before, newest = committed(folder)
    flip_a_bit(newest / "__1_0.distcp")
    rows = carry_out(folder, ranks=2)
    assert [row["step"] for row in rows if row["attempt"] == 2] == list(range(step_of(before) + 1, STEPS + 1))
    for row, expected in zip(curve(rows), whole, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_disk_that_is_full_in_the_midst_of_a_tensor_is_told(tmp_path: Path, grouped: bool) -> None:
    """torch.save lays an error of its own over it, and in a group of ranks errors travel without what lies below.

    Here a limit on the length of a file stands for the disk.
    """
    if grouped:
        Rank().join()
    saver = Saver(Attempt.claim(tmp_path), TrainConfig())
    tensors = {f"model.{number}": torch.zeros(20_000) for number in range(100)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            saver.commit(tensors, Counters(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        saver.close()
        Rank().leave()
    assert not list((tmp_path / rundir.CHECKPOINTS).iterdir())


def test_a_save_that_a_newer_attempt_has_cleared_away_tells_of_that(tmp_path: Path) -> None:
    """Its files are missing then, which is not what went wrong."""
    saver, claimed = Saver(Attempt.claim(tmp_path), TrainConfig()), threading.Event()
    saver.threads.submit(claimed.wait)
    saver.start(state(1), Counters(1))
    Attempt.claim(tmp_path)
    clear_unfinished(tmp_path)
    claimed.set()
    with pytest.raises(Superseded):
        saver.wait()
    saver.close()


def test_what_a_killed_attempt_left_is_gone_before_the_next_saves(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a checkpoint and half of the weights: on a disk without room for them beside the next, no attempt got on."""
    folder = write_run(small_config(shards), tmp_path)
    left = [
        folder / rundir.CHECKPOINTS / f".{step_name(4)}.attempt-1" / "__0_0.distcp",
        folder / rundir.CHECKPOINTS / step_name(2) / "__0_0.distcp",
        folder / f".{WEIGHTS}.k1ll3d.tmp",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100))
    start, found = Saver.start, []

    def watched(saver: Saver, tensors: dict[str, Any], counters: Counters) -> None:
        found.append([path.exists() for path in left[:2]])
        start(saver, tensors, counters)

    monkeypatch.setattr(Saver, "start", watched)
    execute(load_run(folder / rundir.CONFIG), folder)
    assert found[0] == [False, False]
    assert not left[2].exists()


def test_a_copy_beside_them_is_no_checkpoint_of_the_run(tmp_path: Path) -> None:
    go_on(tmp_path, 100)
    folder = tmp_path / rundir.CHECKPOINTS
    shutil.copytree(folder / step_name(100), folder / f"{step_name(100)}.bak")
    assert go_on(tmp_path, 200, keep=1) == 100
    assert kept(tmp_path) == [200]
    assert (folder / f"{step_name(100)}.bak" / COMMIT).is_file()


def test_an_old_attempt_takes_nothing_from_a_newer_one(tmp_path: Path) -> None:
    go_on(tmp_path, 100, 200)
    with pytest.raises(Superseded):
        discard_unread(Attempt(tmp_path, 0), 50, 100)
    assert kept(tmp_path) == [100, 200]


def test_killed_at_any_change_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its marker stands the state read before is there, after it the new one, whatever else was left."""
    origin = tmp_path / "origin"
    go_on(origin, 100, 190, 200, keep=9)
    damage(origin, 190, 200)
    seen = set()
    for moment in range(100):
        run = tmp_path / str(moment)
        shutil.copytree(origin, run)
        with monkeypatch.context() as patched:
            _kill_at(patched, moment)
            with suppress(Killed):
                go_on(run, 190, keep=1)
                break
        marked = rundir.read_json(run / rundir.CHECKPOINTS / step_name(190) / COMMIT) or {}
        found = go_on(run)
        assert found == (190 if marked.get("attempt") == 2 else 100), moment
        seen.add(found)
        assert go_on(run, 210, keep=1) == found
        assert kept(run) == [210]
    else:
        pytest.fail("it never got through")
    assert seen == {100, 190}


def _kill_at(patched: pytest.MonkeyPatch, moment: int) -> None:
    """Ends the process before the change of the file system that comes after `moment` others."""
    done = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done > moment:
                raise Killed
            return call(*arguments, **options)

        return change

    for name in ("unlink", "rename", "replace"):
        patched.setattr(Path, name, counted(getattr(Path, name)))
    patched.setattr(shutil, "rmtree", counted(shutil.rmtree))
