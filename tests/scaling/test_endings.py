"""How a run ends: its engine lets go of what it has recorded before the ranks leave their group."""

import dataclasses
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from data.batch import Batch
from models.weights import WEIGHTS
from scaling import endings, environment, rundir
from scaling.attempt import Attempt
from scaling.engines.single import SingleEngine
from scaling.environment import Rank
from scaling.errors import UserError
from scaling.execute import execute
from scaling.reading import load_run
from scaling.run import Run
from scaling.saver import Saver
from scaling.start import run_folder
from scaling.stop import Stopped
from tests.scaling import runs
from tests.scaling.runs import small_config, write_run


@pytest.mark.parametrize("ending", ["completed", "stopped", "failed"])
def test_the_engine_is_closed_before_the_ranks_leave(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """NCCL would wait for recordings to go, for ever. (On a CPU there are none: what is seen here is the order.)"""
    calls: list[str] = []
    monkeypatch.setattr(SingleEngine, "close", lambda engine: calls.append("close"))
    monkeypatch.setattr(Rank, "leave", lambda rank: calls.append("leave"))

    def interrupted(saver: Saver, step: int) -> bool:
        if ending == "completed":
            return False
        raise Stopped("asked to") if ending == "stopped" else ValueError("a fault")

    monkeypatch.setattr(Saver, "due", interrupted)
    folder = write_run(small_config(shards), tmp_path)
    config = load_run(folder / rundir.CONFIG)
    if ending == "completed":
        execute(config, folder)
    else:
        with pytest.raises(Stopped if ending == "stopped" else ValueError):
            execute(config, folder)
    assert calls == {"completed": ["close", "leave"], "stopped": ["close", "leave"], "failed": ["close"]}[ending]
    status = rundir.read_json(folder / rundir.STATUS)
    assert status is not None
    assert status["state"] == ending


def test_an_error_holds_what_it_passed_through_no_longer_than_it_lasts(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that only the garbage collector finds cannot tell its workers to end, and waits for them."""
    opened = Run.open_training_stream
    streams: list[weakref.ref[Iterator[Batch]]] = []

    def watched(run: Run) -> Iterator[Batch]:
        stream = opened(run)
        streams.append(weakref.ref(stream))
        return stream

    def broken(saver: Saver, step: int) -> bool:
        raise ValueError("a fault")

    monkeypatch.setattr(Run, "open_training_stream", watched)
    monkeypatch.setattr(Saver, "due", broken)
    folder = write_run(small_config(shards), tmp_path)
    gc.disable()
    try:
        execute(load_run(folder / rundir.CONFIG), folder)
    except ValueError:
        assert streams[0]() is not None
    finally:
        gc.enable()
    assert streams[0]() is None


def test_what_the_user_must_mend_is_told_by_the_rank_that_meets_it(tmp_path: Path) -> None:
    """Rank 0 learns only that a connection broke; a shard may be missing among those of rank 1."""
    attempt = Attempt.claim(tmp_path)
    theirs = Attempt(tmp_path, attempt.number, writes=False)
    missing, broken = UserError("shards", "shard-000003.tar", "all shards"), RuntimeError("connection closed by peer")
    assert endings.record_failure(tmp_path, Rank(1, 2), theirs, broken) is broken
    assert not (tmp_path / rundir.STATUS).exists()
    assert endings.record_failure(tmp_path, Rank(1, 2), theirs, missing) is missing
    assert endings.record_failure(tmp_path, Rank(0, 2), attempt, broken) is broken
    status = rundir.read_json(tmp_path / rundir.STATUS)
    assert status is not None
    assert (status["state"], status["attempt"]) == ("failed", 1)
    assert "shard-000003.tar" in status["error"]


@pytest.mark.parametrize("job", ["", "7"])
def test_a_second_process_that_cannot_start_says_nothing_of_the_one_at_work(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """Its error is its own: the run's once the first process is gone, or when a job that came again meets it."""
    folder = write_run(small_config(shards), tmp_path)
    config = dataclasses.replace(load_run(folder / rundir.CONFIG), parent="absent")
    code = "import sys, pathlib, scaling.attempt as a; a.Attempt.claim(pathlib.Path(sys.argv[1])).set_status('running')"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()", str(folder)]
    set_job(monkeypatch, job)
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=runs.environment()) as first:
        while (before := rundir.read_json(folder / rundir.STATUS)) is None:
            assert first.poll() is None
        set_job(monkeypatch, job and "8")
        with pytest.raises(UserError, match="absent"):
            execute(config, folder)
        assert rundir.read_json(folder / rundir.STATUS) == before
    set_job(monkeypatch, job)
    with pytest.raises(UserError, match="absent"):
        execute(config, folder)
    assert (rundir.read_json(folder / rundir.STATUS) or {})["state"] == "failed"


def test_weights_of_a_parent_that_were_cut_off_are_its_fault(tmp_path: Path, shards: Path) -> None:
    """As a copy onto a full disk leaves them."""
    folder = write_run(small_config(shards, stage="finetune", randaugment="", mixup=0.0, cutmix=0.0), tmp_path)
    weights = folder.parent / "parent" / WEIGHTS
    weights.parent.mkdir()
    config = dataclasses.replace(load_run(folder / rundir.CONFIG), parent="parent")
    for content in (b"", save({"weight": torch.zeros(1000)})[:-1]):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=rf"parent: 'parent' is not valid \({WEIGHTS} cannot be read"):
            execute(config, folder)


def test_a_run_that_lost_its_status_goes_on_in_its_folder(tmp_path: Path, shards: Path) -> None:
    """Wherever the root is said to be: another folder would begin it again."""
    folder = write_run(small_config(shards), tmp_path)
    config = load_run(folder / rundir.CONFIG)
    assert run_folder(config, folder / rundir.CONFIG, tmp_path / "elsewhere") == folder


def test_git_that_does_not_answer_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nexec sleep 20\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(environment, "GIT_SECONDS", 0.2)
    assert environment.git_commit() is None


def set_job(monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
