"""The plan of a study: every run with its cost and what is already done. Needs no data, no GPU and no Slurm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from data.datasets import known_sizes
from data.remote import is_remote
from scaling import rundir
from scaling.attempt import at_work
from scaling.config import DataConfig, RunConfig
from scaling.cost import Cost, cost
from scaling.errors import UserError
from scaling.requirements import require_split, split_index
from scaling.study import identity
from scaling.study.table import Study
from scaling.study.tune import tuned_runs


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data: from the shards, else from the source's own statement, else nothing."""

    fingerprint: str  # "" before packing
    samples: int | None
    classes: int | None


@dataclass(frozen=True)
class Row:
    """One run of the plan."""

    config: RunConfig
    name: str  # the run id; before packing the readable part and question marks
    cost: Cost
    state: str
    level: int  # 0 for a run without parent, 1 for its children


@dataclass(frozen=True)
class Plan:
    """The rows of a study, parents directly before their children."""

    study: Study
    data: DataFacts
    rows: list[Row]
    waiting: int = 0  # arms whose final runs follow when their trials are completed


def data_facts(data: DataConfig) -> DataFacts:
    """Reads the index of the training shards where they are packed."""
    if data.shards and (is_remote(data.shards) or Path(data.shards).exists()):
        index = split_index(data.shards, "train")
        return DataFacts(index.fingerprint, index.samples, len(index.classes))
    known = known_sizes(data.source)
    return DataFacts("", known["train"], known["classes"]) if known else DataFacts("", None, None)


def plan_study(study: Study, root: Path) -> Plan:
    """The plan of `study` with the states found under `root`."""
    facts = data_facts(study.data)
    folder = root / study.name
    table, waiting = tuned_runs(study, folder, facts.fingerprint, facts.samples, facts.classes)
    children: dict[str | None, list[RunConfig]] = {}
    for config in table:
        children.setdefault(config.parent, []).append(config)
    rows: list[Row] = []

    def visit(parent: str | None, level: int) -> None:
        for config in children.get(parent, []):
            name = config.run if facts.fingerprint else f"{identity.readable(config)}-????????"
            price = cost(config, facts.samples, facts.classes or 1000)
            state = seen_state(folder / config.run) if facts.fingerprint else "planned"
            rows.append(Row(config, name, price, state, level))
            visit(config.run, level + 1)

    visit(None, 0)
    return Plan(study, facts, rows, waiting)


def with_seen_states(plan: Plan, root: Path) -> Plan:
    """The plan with the states that its folders have now."""
    if not plan.data.fingerprint:
        return plan
    folder = root / plan.study.name
    return replace(plan, rows=[replace(row, state=seen_state(folder / row.config.run)) for row in plan.rows])


def seen_state(folder: Path) -> str:
    """`run_state`, but a run whose process on this very machine is dead is stopped, whatever it last said."""
    state = run_state(folder)
    return "stopped" if state == "running" and not at_work(folder) else state


def run_state(folder: Path) -> str:
    """The state of a run as its folder has it: completed exactly when its summary exists."""
    if (folder / rundir.SUMMARY).is_file():
        return "completed"
    status = rundir.read_json(folder / rundir.STATUS)
    if status is None:
        return "planned"
    state = str(status.get("state"))
    return "planned" if state == "completed" else state


def require_data(plan: Plan) -> None:
    """Everything that the runs need of packed shards, other test sets too, checked before the first one starts."""
    shards, source = plan.study.data.shards, plan.study.data.source or "SOURCE"
    if not plan.data.fingerprint:
        command = f"armscale data pack {source} {shards or 'shards/NAME'}"
        raise UserError("data.shards", shards, f"a folder of packed shards; pack it first: {command}", why="not there")
    index_of = cache(split_index)  # shards may be far away, and runs many
    for row in plan.rows:
        require_split(row.config, index_of)
    # Once for each list of evaluators: labels of ImageNet's validation images take a while to read.
    asking = {
        tuple(row.config.train.evaluate): row.config
        for row in plan.rows
        if not row.config.data.held_out and any(entry.dataset for entry in row.config.train.evaluate)
    }
    if asking:
        from scaling.evaluate import require_test_sets  # with torch, which a launch does without else

        classes = index_of(shards, "train").classes
        for config in asking.values():
            require_test_sets(config, classes)
