"""How long a job may take, as resources.time and a site's file say it."""

from __future__ import annotations

import re

from scaling.errors import UserError


def minutes(time: str, name: str) -> int:
    """A limit in Slurm's forms (minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]])."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not found:
        raise UserError(name, time, "a time such as 90, 04:00:00 or 2-12:00:00")
    days, *parts = (int(part) if part else 0 for part in found.groups())
    if found[1] is not None or found[4] is not None:
        hours, minute, seconds = parts
    else:
        hours, minute, seconds = 0, parts[0], parts[1]
    return max(1, (days * 24 + hours) * 60 + minute + (seconds > 0))
