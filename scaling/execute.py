"""One run from its config to its summary: start or resume, train, evaluate, export, sum up."""

from __future__ import annotations

import sys
from pathlib import Path

from scaling import checkpoint, endings, files, rundir
from scaling.attempt import Attempt, Superseded
from scaling.card import write_card
from scaling.config import RunConfig
from scaling.environment import Rank
from scaling.evaluate import evaluate, was_cut
from scaling.run import Run
from scaling.start import build, check_inputs, claim
from scaling.stop import Stopped, StopRequest
from scaling.summary import sum_up
from scaling.trace import Trace
from scaling.train import train
from scaling.weights import export


def execute(config: RunConfig, folder: Path, *, profile: bool = False) -> Path:
    """Carries the run in `folder` to its summary and returns the summary's path; resumes what was interrupted.

    `profile` traces some steps (`scaling.trace`).

    Raises Stopped when asked to stop (state committed), Superseded when a newer attempt exists, UserError for input
    that cannot work. status.json tells the same.
    """
    summary = folder / rundir.SUMMARY
    if summary.is_file():
        return summary
    rank = Rank.from_environment()
    attempt: Attempt | None = None
    with StopRequest(config.resources.grace) as stop:
        try:
            rank.join_others()
            index, parent = check_inputs(config, folder, rank.ranks)
            attempt = claim(config, folder, rank, stop)
            run = build(config, attempt, rank, index, parent, stop)
            run.trace = Trace(folder, rank, wanted=profile)
            carry_out(run)
            rank.leave()
        except Superseded:
            raise
        except Stopped as stopped:
            assert attempt is not None
            endings.record_stop(attempt, str(stopped))
            rank.leave()
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again
            ending = endings.record_failure(folder, rank, attempt, error)
            try:
                if ending is error:
                    raise
                raise ending from error
            finally:
                del ending  # else error and frame would hold each other, and the frame the loader's workers
    return summary


def carry_out(run: Run) -> None:
    """Trains, evaluates, exports and sums up."""
    announce(run)
    try:
        if was_cut(run):
            evaluate(run, finished=False)
        train(run)
        evaluations = evaluate(run)
    except Stopped:
        run.side.settle()
        run.commit()  # an evaluation may come between two checkpoints
        raise
    finally:
        run.trace.close()
        run.watchdog.close()
        run.saver.close()
        run.engine.close()
    export(run)
    if run.attempt.writes:
        folder, summary = run.attempt.folder, sum_up(run, evaluations)
        run.attempt.check()
        write_card(folder, summary)
        files.write_json(folder / rundir.SUMMARY, summary)  # last: with it the run is completed, and never repeated
    run.attempt.set_status("completed", step=run.counters.step)


def announce(run: Run) -> None:
    """Commits a new run's first state, which tries the disk before any work is done, and says what a commit costs."""
    if run.saver.newest < 0:
        run.commit()
    run.attempt.goes_on_from(run.counters.step)
    if not run.attempt.writes:
        return
    seconds = checkpoint.seconds_of(checkpoint.at_step(run.attempt.folder, run.counters.step))
    grace = run.config.resources.grace
    print(f"attempt {run.attempt.number} from step {run.counters.step} of {run.steps}", flush=True)
    if seconds is None:
        return
    print(f"a commit takes {seconds:.2g} s (measured at that step); a stop has {grace:g} s", flush=True)
    if 2 * seconds > grace:  # a stop may find a save under way
        print(
            f"warning: a stop may need {2 * seconds:.0f} s, but resources.grace is {grace:g} s: the last steps may be "
            "lost; ask the site for a longer grace time",
            file=sys.stderr,
        )
