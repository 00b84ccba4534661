"""`armscale bench scaling`: the same step on 1 to N ranks, weak (a batch a rank) and strong (one batch over all).

Efficiency is against the engine `single` on one rank of this machine, measured in the same passes: of a device's rate
when weak, of the speed-up over the number of ranks when strong. World sizes take turns, pass after pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from scaling.bench.ranks import RankCase, measure
from scaling.bench.step import facts
from scaling.bench.trainer import StepCase
from scaling.errors import UserError

KINDS = ("weak", "strong")
SPREAD = ("ddp", "fsdp", "deepspeed")
"""Engines that may be asked for: single is the baseline."""


def world_sizes(ranks: int) -> list[int]:
    """1, 2, 4 ... and `ranks` itself."""
    return sorted({2**power for power in range(ranks.bit_length()) if 2**power <= ranks} | {ranks})


def scaling_bench(
    case: StepCase,
    device: str,
    engines: Sequence[str],
    kinds: Sequence[str],
    ranks: int,
    *,
    compile: bool = False,
    passes: int = 2,
    rounds: int = 3,
    threads: int = 1,
) -> dict[str, Any]:
    """Steps on 1, 2, 4 .. `ranks` ranks; `case.micro_batch` is of a rank when weak, of the whole job when strong."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError("--kind", kind, KINDS)
    if not engines or not set(engines) <= set(SPREAD):
        why = "single is the baseline" if "single" in engines else ""
        raise UserError("--engine", ",".join(engines), SPREAD, why=why)
    sizes = world_sizes(ranks)
    if "strong" in kinds and any(case.micro_batch % size for size in sizes):
        valid = f"a multiple of {math.lcm(*sizes)}"
        raise UserError("--micro-batch", case.micro_batch, valid, why=f"strong scaling over {sizes} ranks")
    measured: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for _ in range(passes):
        for size in sizes:
            cells = _cells(case, engines, kinds, size)
            cases = [RankCase(cell, compile=compile, rounds=rounds) for _, cell in cells]
            reports = measure(cases, size, device=device, threads=threads)
            for (kind, cell), report in zip(cells, reports, strict=True):
                measured[kind, cell.engine, size].append(report)
    return {
        "bench": "scaling",
        "case": asdict(case),
        "compile": compile,
        "passes": passes,
        "threads": threads,
        "torch": torch.__version__,
        **facts(case.config()),
        "efficiency_is": "images per second and rank over those of one rank under the engine single",
        "results": list(_rows(measured)),
    }


def _cells(case: StepCase, engines: Sequence[str], kinds: Sequence[str], ranks: int) -> list[tuple[str, StepCase]]:
    names = ("single",) if ranks == 1 else engines
    cells = []
    for kind in kinds:
        batch = case.micro_batch if kind == "weak" else case.micro_batch // ranks
        cells += [(kind, dataclasses.replace(case, engine=name, micro_batch=batch)) for name in names]
    return cells


def _rows(measured: dict[tuple[str, str, int], list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    alone: dict[str, float] = {}
    for (kind, engine, ranks), reports in measured.items():
        row = {"kind": kind, "engine": engine, "ranks": ranks}
        good = [report for report in reports if "error" not in report]
        if not good:
            yield row | {"error": reports[0]["error"]}
            continue
        rates = [report["images_per_second_per_device"] for report in good]
        rate = median(rates)
        if ranks == 1:
            alone[kind] = rate
        yield row | {
            "device": good[0]["device"],
            "micro_batch": good[0]["step"]["micro_batch"],
            "global_batch": good[0]["global_batch"],
            "images_per_second": rate * ranks,
            "images_per_second_per_device": rate,
            "by_pass": rates,
            "efficiency": rate / alone[kind] if kind in alone else None,
            "peak_memory_bytes": max(report["peak_memory_bytes"] for report in good),
        }
