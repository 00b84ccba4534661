"""Whether the runs of a plan fit the devices that they are meant for, before anything starts."""

from __future__ import annotations

from scaling.devices import usable_memory
from scaling.errors import UserError
from scaling.memory import Memory, memory
from scaling.study.plan import Plan, Row


def memory_of(row: Row, classes: int | None) -> Memory:
    """What one rank of a run needs."""
    return memory(row.config, row.config.resources.ranks, classes or 1000)


def require_fit(plan: Plan, device: str) -> None:
    """UserError naming the first run that needs more memory than `device` has, and what it goes into."""
    usable = usable_memory(device)
    for row in plan.rows:
        needs = memory_of(row, plan.data.classes)
        if row.state == "completed" or needs.peak <= usable:
            continue
        state = needs.weights + needs.gradients + needs.moments + needs.average
        why = (
            f"{row.name} needs {needs.peak / 2**30:.1f} GiB a rank, {usable / 2**30:.1f} can be used: "
            f"{state / 2**30:.1f} for weights, gradients and moments, {needs.activations / 2**30:.1f} for activations"
        )
        cure = "a smaller micro_batch, checkpointing, fsdp over more GPUs, or a larger device"
        raise UserError("--device", device, cure, why)
