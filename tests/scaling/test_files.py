"""Atomic writes: a reader sees the old file or the new one, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scaling import files

KILLED_WHILE_WRITING = """
import os, signal, sys
from scaling import files
with files.atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "value.json"
    files.write_json(target, {"a": 1})
    files.write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 2}
    assert [path.name for path in target.parent.iterdir()] == ["value.json"]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "value.txt"
    files.write_text(target, "old")
    with pytest.raises(RuntimeError, match="half-way"), files.atomic_write(target) as file:
        file.write(b"new")
        raise RuntimeError("half-way")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "value.txt"
    files.write_text(target, "old")
    ended = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(target)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert target.read_text() == "old"


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "value.json", {"loss": float("nan")})


def test_files_are_readable_by_the_group(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write_text(tmp_path / "value.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "value.txt").stat().st_mode & 0o777 == 0o644
