"""Carries out the runs in the folders given, one after the other in the same processes, as torchrun started them."""

import sys
from pathlib import Path

from scaling import rundir
from scaling.reading import load_run
from scaling.run import execute

if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        execute(load_run(folder / rundir.CONFIG), folder)
