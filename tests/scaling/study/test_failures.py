"""Causes of failures as real programs word them."""

from pathlib import Path

import pytest

from scaling import rundir
from scaling.attempt import write_status
from scaling.study.failures import RUN_LOG, explain, group, headline

LOGS = {
    "out of memory": (
        "RuntimeError: [1] is setting up NCCL communicator ... Connection reset by peer",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
        "RuntimeError: Connection closed by peer [198.18.77.2]:3456\n",
    ),
    "NaN": ("Diverged: 3 rollbacks did not help", "loss nan at step 40\n"),
    "hang": ("RuntimeError: Watchdog caught collective operation timeout: WorkNCCL(OpType=ALLREDUCE)", ""),
    "node": ("its ranks ended without a word", "RuntimeError: Connection closed by peer [198.18.77.2]:3456\n"),
    "data": ("UserError: data.shards: 'shards/x' is not valid. Valid: a folder of packed shards", ""),
    "disk": ("UserError: run folder: 'runs/a' is not valid ([Errno 28] No space left on device)", ""),
    "time limit": ("the time limit came before anything was saved: raise resources.time", ""),
    "settings": ("UserError: finetune.eval_resize: 'none' is not valid. Valid: square or aspect", "Connection reset"),
    "other": ("ValueError: 17", "Traceback (most recent call last):\nValueError: 17\n"),
}


@pytest.mark.parametrize("cause", LOGS)
def test_the_cause_is_what_came_first_and_not_its_echo(tmp_path: Path, cause: str) -> None:
    error, output = LOGS[cause]
    write_status(tmp_path, "failed", attempt=1, error=error)
    (tmp_path / rundir.LOGS).mkdir()
    log = tmp_path / rundir.LOGS / RUN_LOG
    # An earlier start failed in another way.
    log.write_bytes(headline("first") + b"MemoryError: long ago\n" + headline("second") + output.encode())
    failure = explain(tmp_path)
    assert failure.cause == cause
    assert failure.log == log
    if cause == "out of memory":
        assert failure.line == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


def test_a_checkpoint_that_cannot_be_read_is_no_fault_of_the_settings(tmp_path: Path) -> None:
    write_status(tmp_path, "failed", attempt=2, error="UserError: checkpoint: 'step-00000002' is not valid (cut)")
    assert explain(tmp_path).cause == "other"


def test_what_slurm_says_counts_where_the_run_could_not_speak(tmp_path: Path) -> None:
    write_status(tmp_path, "running", attempt=1)
    assert explain(tmp_path, "OUT_OF_MEMORY n3").cause == "out of memory"
    failure = explain(tmp_path, "NODE_FAIL n3")
    assert (failure.cause, failure.line) == ("node", "NODE_FAIL n3")
    assert explain(tmp_path).line == "no error was written"


def test_groups_begin_with_the_most_frequent(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in "abc"]
    for run, error in zip(runs, ("MemoryError", "CUDA out of memory", "ValueError"), strict=True):
        run.mkdir()
        write_status(run, "failed", error=error)
    groups = group([explain(run) for run in runs])
    assert {cause: len(found) for cause, found in groups.items()} == {"out of memory": 2, "other": 1}
    assert next(iter(groups)) == "out of memory"
