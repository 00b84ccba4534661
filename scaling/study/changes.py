"""A retry with other resources: key=value on runs that failed, for fields that change no result."""

from __future__ import annotations

from dataclasses import replace

from scaling.checks import check
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.reading import merge
from scaling.share import share_of
from scaling.study import identity
from scaling.study.plan import Plan


def with_changes(plan: Plan, changes: list[str], states: tuple[str, ...] = ("failed",)) -> Plan:
    """The plan with `changes` (key=value, as `armscale run` has them) on the runs in `states`.

    A change that would make another run of it is refused: such a run belongs into the study file.
    """
    if not changes:
        return plan

    def change(config: RunConfig) -> RunConfig:
        changed: RunConfig = merge(config, {}, changes)
        check(changed)
        share_of(changed, changed.resources.ranks)
        if identity.run_id(changed, plan.data.fingerprint) != config.run:
            free = identity.ALWAYS_OUT | (identity.OUT_FOR_ACCURACY if config.purpose == "accuracy" else frozenset())
            raise UserError("change", " ".join(changes), sorted(free), why="it would change the result of the run")
        return changed

    rows = [replace(row, config=change(row.config)) if row.state in states else row for row in plan.rows]
    return replace(plan, rows=rows)
