"""Why runs failed: the cause, the line that says so and where it stands, from status.json and the run's own log."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaling import rundir

RUN_LOG: Final = "run.log"
LOG_BYTES: Final = 1 << 18
HEAD: Final = "==== "

CAUSES: Final = {
    "out of memory": r"out of memory|OutOfMemory|\bOOM\b|oom[-_ ]kill|MemoryError|can't allocate memory"
    r"|Cannot allocate memory|bad_alloc|OUT_OF_MEMORY",
    "NaN": r"non-?finite|\bnan\b|diverge|rollback",
    "time limit": r"time limit came before|DUE TO TIME LIMIT|(?-i:\bTIMEOUT\b)",
    "data": r"data\.shards|\.tar\b|index\.json|samples\.npy|unreadable|checksum|crc32|tarfile|ReadError",
    "disk": r"No space left|quota exceeded|Read-only file system|Permission denied|Stale file handle",
    "settings": r"\bUserError: (?!checkpoint\b)",
    "hang": r"watchdog|stalled|hang|timed? ?out|no progress|within the limit",
    "node": r"NODE_FAIL|BOOT_FAIL|node failure|Xid|uncorrectable ECC|NCCL.*(?:remote|system) error|unreachable"
    r"|Connection (?:reset|refused|closed)|No route to host",
}
"""{cause: pattern}, the first that is found anywhere counts: broken connections are the echo of what came before."""

ERROR_LINE: Final = re.compile(r"^(?:\S*: )?(?:\w+\.)*\w*(?:Error|Exception|Killed|Failure)\b.*|.*oom[-_ ]kill.*")


@dataclass(frozen=True)
class Failure:
    """Of one run. `line` is the last that names an error; `log` is where more stands."""

    run: str
    cause: str
    line: str
    log: Path


def headline(text: str) -> bytes:
    """What stands in run.log before the output of each start, so that one can be told from the next."""
    return f"{HEAD}{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode()


def explain(run: Path, slurm: str = "") -> Failure:
    """Why `run` failed; `slurm` is what Slurm says of its job (state and reason), where there is one."""
    log = run / rundir.LOGS / RUN_LOG
    output = last_output(log)
    error = str((rundir.read_json(run / rundir.STATUS) or {}).get("error") or "")
    errors = [line.strip() for line in output.splitlines() if ERROR_LINE.match(line.strip())]
    line = errors[-1] if errors else (error or slurm or (output.strip().splitlines() or [""])[-1])
    told = "\n".join((slurm, error, *errors))
    for cause, pattern in CAUSES.items():
        if re.search(pattern, told, re.IGNORECASE):
            # The line that says so, rather than the last echo of it.
            fitting = [text for text in (*errors, error, slurm) if re.search(pattern, text, re.IGNORECASE)]
            return Failure(run.name, cause, fitting[0].splitlines()[0], log)
    return Failure(run.name, "other", line.splitlines()[0] if line else "no error was written", log)


def last_output(log: Path) -> str:
    """What the last start wrote to its log, at most the last 256 KiB of it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return text.rpartition(f"\n{HEAD}")[2]


def group(failures: list[Failure]) -> dict[str, list[Failure]]:
    """{cause: its failures}, the most frequent first."""
    causes = sorted({failure.cause for failure in failures})
    groups = {cause: [failure for failure in failures if failure.cause == cause] for cause in causes}
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))
