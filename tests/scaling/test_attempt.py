"""Attempts: claimed once, and only the highest writes."""

import concurrent.futures
from pathlib import Path

import pytest

from scaling import rundir
from scaling.attempt import Attempt, Superseded, highest, origins
from scaling.metrics import Records


def test_numbers_count_up(tmp_path: Path) -> None:
    assert highest(tmp_path) == 0
    assert [Attempt.claim(tmp_path).number for _ in range(3)] == [1, 2, 3]
    assert highest(tmp_path) == 3


def test_claims_at_once_are_all_different(tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: Attempt.claim(tmp_path).number, range(40)))
    assert sorted(claimed) == list(range(1, 41))


def test_what_lies_beside_the_claims_is_none(tmp_path: Path) -> None:
    """An editor's copy, and what NFS keeps of a file that was removed while it was open."""
    Attempt.claim(tmp_path).goes_on_from(120)
    claims = tmp_path / rundir.ATTEMPTS
    for name in ("1~", ".nfs0000000000a1", "9.bak"):
        (claims / name).write_bytes((claims / "1").read_bytes())
    assert highest(tmp_path) == 1
    assert origins(tmp_path) == {1: 120}


def test_a_superseded_attempt_writes_nothing_more(tmp_path: Path) -> None:
    old = Attempt.claim(tmp_path)
    old.set_status("running", step=3)
    records = Records(old, rundir.EVALUATIONS, rundir.EVALUATION_KEYS)
    new = Attempt.claim(tmp_path)
    new.set_status("running", step=4)
    for write in (lambda: old.set_status("completed"), lambda: records.write({"top1": 0.5})):
        with pytest.raises(Superseded, match="attempt 1"):
            write()
    status = rundir.read_json(tmp_path / rundir.STATUS)
    assert status is not None
    assert (status["attempt"], status["step"], status["state"]) == (2, 4, "running")
    assert not (tmp_path / rundir.EVALUATIONS).exists()


def test_status_has_the_keys_of_the_format(tmp_path: Path) -> None:
    Attempt.claim(tmp_path).set_status("running")
    status = rundir.read_json(tmp_path / rundir.STATUS)
    assert status is not None
    assert tuple(status) == rundir.STATUS_KEYS


def test_ranks_other_than_zero_write_no_status(tmp_path: Path) -> None:
    Attempt(tmp_path, 1, writes=False).set_status("running")
    assert not (tmp_path / rundir.STATUS).exists()


def test_a_torn_line_stays_alone(tmp_path: Path) -> None:
    attempt = Attempt.claim(tmp_path)
    records = Records(attempt, rundir.EVALUATIONS, rundir.EVALUATION_KEYS)
    records.write({"top1": 0.25})
    path = tmp_path / rundir.EVALUATIONS
    path.write_text(path.read_text() + '{"top1": 0.')  # what a kill leaves
    records.write({"top1": 0.5, "loss": float("nan")})
    rows, torn = rundir.read_lines(path)
    assert [row["top1"] for row in rows] == [0.25, 0.5]
    assert torn == 1
    assert rows[1]["loss"] is None
    assert tuple(rows[0]) == rundir.EVALUATION_KEYS
