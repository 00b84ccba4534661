"""Nodes that stand out, and the record of starts that tells them."""

from pathlib import Path

import pytest

from scaling import rundir
from scaling.attempt import Attempt
from slurm import history
from slurm.nodes import Seen, find_suspects, judge


def seen(*nodes: str, bad: bool = False, likes: str = "a", rate: float | None = None) -> Seen:
    return Seen(nodes, bad, likes, rate)


@pytest.mark.parametrize(
    ("starts", "named"),
    [
        ([seen("n1", "n2"), seen("n3", bad=True), seen("n1", "n3", bad=True), seen("n2")], ["n3"]),
        ([seen("n3", bad=True), seen("n1")], []),  # once is no pattern
        ([seen("n1", bad=True), seen("n1", bad=True), seen("n2", bad=True), seen("n2", bad=True)], []),  # all alike
        ([seen("n1", rate=100), seen("n2", rate=104), seen("n3", rate=60), seen("n3", rate=70)], ["n3"]),
        ([seen("n1", rate=100), seen("n2", rate=104), seen("n3", rate=60), seen("n3", rate=101)], []),
        # Half the rate of another kind of run says nothing.
        ([seen("n1", likes="b", rate=200), seen("n3", rate=100), seen("n3", rate=100)], []),
    ],
)
def test_only_what_repeats_and_stands_out_is_named(starts: list[Seen], named: list[str]) -> None:
    assert [suspect.node for suspect in judge(starts)] == named


def test_starts_are_told_apart_and_one_without_an_end_was_cut_off(tmp_path: Path) -> None:
    first = history.begin(tmp_path, "7_0", 0, ["n1"])
    Attempt.claim(tmp_path)
    second = history.begin(tmp_path, "7_0", 1, ["n2"])
    assert not history.is_newest(tmp_path, first)
    assert history.is_newest(tmp_path, second)
    history.end(tmp_path, second, "requeued", "time limit at step 7")
    with (tmp_path / rundir.LOGS / history.JOBS).open("a") as file:
        file.write('{"event": "sta')
    starts = history.read_starts(tmp_path)
    assert [(start.outcome, start.first_attempt) for start in starts] == [(history.CUT_OFF, 1), ("requeued", 2)]
    assert starts[1].reason == "time limit at step 7"


def test_a_failure_of_the_run_itself_speaks_against_no_node(tmp_path: Path) -> None:
    for name, error in {
        "a": "OutOfMemoryError: CUDA out of memory",
        "b": "RuntimeError: Connection reset by peer",
    }.items():
        for number in range(3):
            (run := tmp_path / f"{name}{number}").mkdir()
            node = f"{name}-node" if number < 2 else "healthy"
            start = history.begin(run, f"{number}_0", 0, [node])
            attempt = Attempt.claim(run)
            if number < 2:
                attempt.set_status("failed", error=error)
            history.end(run, start, "failed" if number < 2 else "completed", "")
    likes = {run.name: "same" for run in tmp_path.iterdir()}
    suspects = find_suspects(tmp_path, likes, alive=())
    assert [(suspect.node, suspect.why) for suspect in suspects] == [("b-node", "2 of 2 starts on it ended badly")]
