"""Carries out the runs in the folders given, one after the other in the same processes, as torchrun started them."""

import sys
from pathlib import Path

from scaling import rundir
from scaling.environment import Rank
from scaling.execute import execute
from scaling.reading import load_run

if __name__ == "__main__":
    leave = Rank.leave
    Rank.leave = lambda rank: None  # one process group for all runs: a second would find the first's keys in the store
    for folder in map(Path, sys.argv[1:]):
        execute(load_run(folder / rundir.CONFIG), folder)
    leave(Rank.from_environment())
