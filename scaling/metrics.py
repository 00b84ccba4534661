"""metrics.jsonl and evaluations.jsonl: one object a line, appended and flushed; TensorBoard beside them."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from scaling import rundir
from scaling.attempt import Attempt

MIRROR_SECONDS = 1.0
"""A training line costs TensorBoard more than the file: where lines come faster than this, it gets one of them."""


def finite(value: float | None) -> float | None:
    """JSON has no NaN; absent and undefined values are null."""
    return value if value is not None and math.isfinite(value) else None


class Records:
    """Appends to one .jsonl file of the run folder, and mirrors numbers to TensorBoard where it is installed."""

    def __init__(self, attempt: Attempt, name: str, keys: tuple[str, ...]) -> None:
        self.attempt = attempt
        self.path = attempt.folder / name
        self.keys = keys
        self.mirrored_until = 0.0
        self.board = _summary_writer(attempt.folder / rundir.LOGS / "tensorboard") if attempt.writes else None

    def write(self, values: dict[str, Any]) -> None:
        """Appends one object with every key of the file, absent ones null. Ranks other than 0 write nothing."""
        assert not set(values) - set(self.keys), set(values) - set(self.keys)
        if not self.attempt.writes:
            return
        self.attempt.check()
        row = {key: values.get(key) for key in self.keys}
        row |= {"time": time.time(), "attempt": self.attempt.number}
        row = {key: finite(value) if isinstance(value, float) else value for key, value in row.items()}
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not _ends_with_newline(self.path):
                file.write("\n")  # a kill tore the last line; it stays torn, the next one is whole
            file.write(json.dumps(row, allow_nan=False) + "\n")
        if self.board is not None and time.monotonic() >= self.mirrored_until:
            self.mirrored_until = time.monotonic() + (MIRROR_SECONDS if self.path.name == rundir.METRICS else 0.0)
            for key, value in row.items():
                if isinstance(value, int | float) and key not in ("time", "attempt", "step"):
                    self.board.add_scalar(f"{self.path.stem}/{key}", value, row.get("step") or 0)

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self.board is not None:
            self.board.close()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _summary_writer(folder: Path) -> Any:
    """A TensorBoard writer, or None where the extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
