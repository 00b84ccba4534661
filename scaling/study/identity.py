"""Who a run is: a readable part and a hash over every field that changes its result.

Only fields that differ from the defaults of the schema version are hashed, and the version itself, so that a new field
with a default renames no old run. Data sets enter as the fingerprint in their index, never as a path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import fields
from functools import lru_cache
from typing import Any

from scaling.config import STAGE_DEFAULTS, RunConfig

ALWAYS_OUT = frozenset({
    "study", "run", "data.shards", "data.source", "data.workers", "train.log_every", "train.checkpoint_every",
    "train.keep_checkpoints", "train.keep_every", "train.eval_batch", "train.evaluate", "train.branches",
    "faults.step_timeout", "faults.timing_every", "resources.time", "resources.grace",
})  # fmt: skip
"""Where, when and how it is watched: none of these changes a weight."""

OUT_FOR_ACCURACY = frozenset({
    "engine", "train.micro_batch", "compile", "checkpointing", "fsdp.replicas", "fsdp.reshard_after_forward",
    "fsdp.offload", "deepspeed.stage", "deepspeed.offload", "resources.nodes", "resources.gpus_per_node",
})  # fmt: skip
"""How the work is spread. It changes the speed, so it is in when the purpose is throughput."""


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A dataclass (or mapping) as {dotted name: leaf}."""
    # Not asdict: it copies every leaf, and a study asks for thousands of these.
    items = value if isinstance(value, dict) else {item.name: getattr(value, item.name) for item in fields(value)}
    flat: dict[str, Any] = {}
    for name, item in items.items():
        if isinstance(item, dict) or dataclasses.is_dataclass(item):
            flat.update(flatten(item, f"{prefix}{name}."))
        else:
            flat[prefix + name] = item
    return flat


@lru_cache
def _defaults(stage: str) -> dict[str, Any]:
    return flatten(dataclasses.replace(RunConfig(), train=STAGE_DEFAULTS[stage]))


def result_fields(config: RunConfig) -> dict[str, Any]:
    """Every field that changes the result of such a run, by its dotted name."""
    out = ALWAYS_OUT | (OUT_FOR_ACCURACY if config.purpose == "accuracy" else frozenset())
    other_objectives = {"ar": ("mae.",), "mae": ("ar.",)}.get(config.strategy, ("ar.", "mae."))
    if config.stage != "pretrain":
        other_objectives = ("ar.", "mae.")  # they act through the parent
    return {
        name: value
        for name, value in flatten(config).items()
        if name not in out and not name.startswith(other_objectives)
    }


def hashed_fields(config: RunConfig, fingerprint: str) -> dict[str, Any]:
    """What the identity of `config` is made of; `fingerprint` is that of its training shards ("" when not packed)."""
    defaults = _defaults(config.stage)
    always = ("strategy", "encoder", "size", "stage", "seed", "parent", "schema")
    hashed = {name: value for name, value in result_fields(config).items() if name in always or value != defaults[name]}
    hashed["data.fingerprint"] = fingerprint
    return hashed


def changed_fields(config: RunConfig, held: Any) -> dict[str, Any]:
    """What `held`, a config or the mapping in a config.yaml, has otherwise of the fields that change the result.

    A field that it lacks is at its default, as when its writer did not know it yet.
    """
    there = _defaults(config.stage) | flatten(held)
    return {name: there[name] for name, value in result_fields(config).items() if not _same(there[name], value)}


def _same(one: Any, other: Any) -> bool:
    """Equal, where YAML has lists for tuples."""
    return (list(one) if isinstance(one, tuple) else one) == (list(other) if isinstance(other, tuple) else other)


def readable(config: RunConfig) -> str:
    """The part of the run id that people read: strategy-encoder-size-stage-s<seed>.

    A finetuning of what was already finetuned has its resolution behind the stage, a decay the images at which it left
    its trunk, and what is evaluated on held-out images is called a trial.
    """
    stage = config.stage
    if config.train.branched_at:
        stage += f"-at{config.train.branched_at}"
    elif config.stage == "finetune" and "-finetune-" in (config.parent or ""):
        stage += f"-{config.train.image_size}"
    if config.data.held_out:
        stage += "-trial"
    return f"{config.strategy}-{config.encoder}-{config.size}-{stage}-s{config.seed}"


def run_id(config: RunConfig, fingerprint: str) -> str:
    """The run's id: readable part and 8 hex digits of its identity."""
    text = json.dumps(hashed_fields(config, fingerprint), sort_keys=True)
    return f"{readable(config)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
