"""`armscale run --profile`: a trace of some steps by torch's profiler, for chrome://tracing or Perfetto."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from scaling import rundir
from scaling.environment import Rank

WAIT, WARM_UP, STEPS = 3, 1, 3
"""Steps left alone (they compile), taken to warm the profiler up, and recorded."""


class Trace:
    """Writes logs/trace-rank-<rank>.json once; does nothing unless wanted."""

    def __init__(self, folder: Path, rank: Rank, *, wanted: bool) -> None:
        self.path = folder / rundir.LOGS / f"trace-rank-{rank.rank}.json"
        self.profiler: profile | None = None
        if wanted:
            activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
            plan = schedule(wait=WAIT, warmup=WARM_UP, active=STEPS, repeat=1)
            self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
            self.profiler.start()

    def step(self) -> None:
        """A step of training is done."""
        if self.profiler is not None:
            self.profiler.step()
            if self.path.is_file():
                self.close()

    def close(self) -> None:
        """Ends the profiling; a run with too few steps leaves the trace of those it had."""
        if self.profiler is not None:
            profiler, self.profiler = self.profiler, None
            profiler.stop()

    def _write(self, profiler: profile) -> None:
        profiler.export_chrome_trace(str(self.path))
        print(f"trace of {STEPS} steps: {self.path}", flush=True)
