"""Starts a module of these tests on several ranks."""

import subprocess
import sys

from tests.scaling.runs import environment


def launch(module: str, *arguments: object, ranks: int) -> None:
    """torchrun on this machine; what the ranks wrote becomes the message when one of them fails."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*start, "-m", f"tests.scaling.engines.{module}", *map(str, arguments)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
