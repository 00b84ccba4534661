"""What a launch prints of its runs, whatever these have said."""

from pathlib import Path

import pytest

from scaling import rundir
from scaling.attempt import write_status
from scaling.study.plan import plan_study
from scaling.study.progress import Progress
from scaling.study.table import load_study
from tests.scaling.test_quickstart import tiny_study

ERROR = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] [red]Connection closed[/] \\\\"


@pytest.mark.parametrize("state", [state for state in rundir.STATES if state != "completed"])
def test_every_state_and_error_is_printed_as_it_stands(
    tmp_path: Path, shards: Path, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_study(load_study(tiny_study(tmp_path, shards)), tmp_path)
    (name, *_) = (row.config.run for row in plan.rows)
    write_status(tmp_path / name, state, error=ERROR)
    Progress(plan, tmp_path).finished(name, state)
    assert capsys.readouterr().out.rstrip("\n") == f"{state} {name} {ERROR}"
