"""Lost work in closed form, and as a run that is killed reports it."""

import signal
import time
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest

from scaling import rundir
from scaling.attempt import Attempt, origins
from scaling.checkpoint import committed, step_of
from scaling.summary import lost_seconds, rate_of
from tests.scaling.runs import BATCH, carry_out, command, environment, small_config, write_run

SECONDS, DEVICES = 2.0, 4


def rows(*logged: tuple[int, int]) -> list[dict[str, float]]:
    """Rows of these (attempt, step)."""
    return [{"attempt": attempt, "step": step, "step_seconds": SECONDS, "devices": DEVICES} for attempt, step in logged]


@pytest.mark.parametrize(
    ("logged", "starts", "lost_steps"),
    [
        ([(1, 10), (1, 20), (1, 30)], {1: 0}, 0),
        ([(1, 10), (1, 20), (1, 30), (2, 30), (2, 40)], {1: 0, 2: 20}, 10),
        ([(1, 10), (2, 10), (2, 20)], {1: 0, 2: 0}, 10),  # killed in its first interval
        ([(1, 10), (2, 20), (3, 20)], {1: 0, 2: 15, 3: 15}, 5),  # an interval that began between two rows
        ([(1, 10), (1, 20), (1, 30), (2, 30)], {1: 0, 2: 25}, 5),  # and one that is kept in part
        ([(1, 10), (1, 20), (2, 30)], {1: 0, 2: 20}, 0),
        ([(1, 110), (1, 120), (2, 110)], {1: 100, 2: 100}, 20),  # a branch, which starts with its trunk's step
        ([(1, 10), (1, 20), (2, 20), (2, 30), (3, 10), (3, 20)], {1: 0, 2: 10, 3: 0}, 40),  # nothing of 1 and 2 remains
        ([(1, 10), (2, 10)], {1: 0, 2: 0, 3: 0}, 10),  # one that was killed before it logged takes nothing back
        ([], {}, 0),
    ],
)
def test_lost_work_is_what_a_later_attempt_did_not_go_on_from(
    logged: list[tuple[int, int]], starts: dict[int, int], lost_steps: int
) -> None:
    assert lost_seconds(rows(*logged), starts) == lost_steps * SECONDS * DEVICES


def test_the_rate_is_that_of_a_device_at_every_world_size() -> None:
    """Three quarters of a run on one device, the rest on eight; the first interval holds the start-up."""
    logged = [(5.0, 1), (100.0, 1), (100.0, 1), (100.0, 1), (800.0, 8)]
    assert rate_of([{"images_per_second": rate, "devices": devices} for rate, devices in logged]) == 100.0
    assert rate_of([]) is None


def test_an_attempt_notes_where_it_goes_on_from(tmp_path: Path) -> None:
    first, second = Attempt.claim(tmp_path), Attempt.claim(tmp_path)
    assert origins(tmp_path) == {}
    second.goes_on_from(120)
    Attempt(tmp_path, first.number, writes=False).goes_on_from(7)
    assert origins(tmp_path) == {2: 120}
    with (tmp_path / rundir.ATTEMPTS / "1").open("a") as torn:
        torn.write("from st")
    assert origins(tmp_path) == {2: 120}


@pytest.mark.slow
def test_a_run_killed_in_its_first_interval_counts_it(tmp_path: Path, shards: Path) -> None:
    """One row of 4 steps, no commit but the first state's: all of it is lost."""
    folder = write_run(small_config(shards, images=12 * BATCH, log_every=4, checkpoint_every=1000), tmp_path)
    metrics = folder / rundir.METRICS
    process = Popen(command(folder), env=environment(), stdout=DEVNULL, stderr=DEVNULL)
    while not rundir.read_lines(metrics)[0]:
        assert process.poll() is None
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert step_of(committed(folder)[-1]) == 0
    lost = rundir.read_lines(metrics)[0]
    carry_out(folder)
    summary = rundir.read_json(folder / rundir.SUMMARY) or {}
    expected = sum(4 * row["step_seconds"] for row in lost)
    assert summary["gpu_seconds"] - summary["useful_gpu_seconds"] == pytest.approx(expected)
