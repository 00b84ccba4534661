"""What status prints of failures."""

from pathlib import Path

from rich.console import Console

from scaling.cli.status import failures_table
from scaling.study.failures import Failure


def test_a_log_is_named_as_its_path_is() -> None:
    console = Console(width=200)
    with console.capture() as told:
        console.print(failures_table([Failure("a", "other", "[/pytorch/c10] broke", Path("[runs]/a/logs/run.log"))]))
    assert "[/pytorch/c10] broke" in told.get()
    assert "[runs]/a/logs/run.log" in told.get()
