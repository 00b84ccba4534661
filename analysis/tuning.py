"""What a study tuned: every arm's trials, the values chosen, and choices at the edge of their grid."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import page
from analysis.page import Column
from scaling.rundir import TUNING, read_json

COLUMNS = (
    Column("arm", "Arm", page.text, numeric=False),
    Column("trials", "Trials", page.count),
    Column("completed", "Completed", page.count),
    Column("chosen", "Chosen", page.text, numeric=False),
    Column("top1", "Top-1 on held-out images", page.percent),
    Column("second", "Second best", page.percent),
    Column("edge", "At the edge of its grid", page.text, numeric=False),
)
TRIALS = (
    Column("arm", "Arm", page.text, numeric=False),
    Column("values", "Values", page.text, numeric=False),
    Column("top1", "Top-1 on held-out images", page.percent),
)


def tuning_section(study: Path) -> str:
    """The section of the report; empty where the folder has no tuning.json."""
    record = read_json(study / TUNING)
    if record is None:
        return ""
    arms, trials = [], []
    for arm in record["arms"]:
        name = told(arm["arm"]) or "the study"
        scores = sorted((trial["top1"] for trial in arm["trials"] if trial["top1"] is not None), reverse=True)
        chosen = arm["chosen"]
        arms.append({
            "arm": name,
            "trials": len(arm["trials"]),
            "completed": len(scores),
            "chosen": told(chosen) if chosen is not None else "not yet",
            "top1": scores[0] if chosen is not None and scores else None,
            "second": scores[1] if chosen is not None and len(scores) > 1 else None,
            "edge": ", ".join(arm["at_edge"]) or None,
        })  # fmt: skip
        trials += [{"arm": name, "values": told(trial["values"]), "top1": trial["top1"]} for trial in arm["trials"]]
    edges = sum(bool(arm["at_edge"]) for arm in record["arms"])
    warning = (
        f'<p class="note">{edges} of {len(arms)} arms chose a value at the edge of its grid: a better one may lie '
        "beyond it, and their comparison with the others is not settled.</p>"
        if edges
        else ""
    )
    grid = "; ".join(f"{name}: {', '.join(map(str, values))}" for name, values in record["grid"].items())
    return (
        f"<p>Every arm was given the same grid ({escape(grid)}), one trial a point. Values were chosen by top-1 on "
        f"{record['held_out']:.1%} of the training images, the same of every class, which the trials did not train on; "
        f"the test images chose nothing.</p>{warning}{page.table(pd.DataFrame(arms), COLUMNS)}"
        f"<details><summary>All {len(trials)} trials</summary>"
        f"{page.table(pd.DataFrame(trials), TRIALS, tall=True)}</details>"
    )


def told(values: dict[str, Any]) -> str:
    """Names and values in one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
