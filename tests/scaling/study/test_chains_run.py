"""Plans carried out in small: the chain to a larger resolution, and arms matched by rates that runs have measured."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F

from analysis.collect import collect_runs
from analysis.tables import write_tables
from models.weights import WEIGHTS
from scaling import rundir
from scaling.execute import execute
from scaling.reading import load_run
from scaling.study.folders import write_folders
from scaling.study.match import RATE
from scaling.study.plan import Plan, plan_study
from scaling.study.table import load_study

BATCH = 16
STAGE = {"images": 4 * BATCH, "global_batch": BATCH, "micro_batch": BATCH, "image_size": 32, "log_every": 1}
SMALL: dict[str, Any] = {
    "model": {"patch_size": 4, "depth": 2, "width": 32},
    "ar": {"cluster_side": 2, "decoder_depth": 2, "decoder_width": 32},
    "mae": {"decoder_depth": 1, "decoder_width": 32, "decoder_heads": 1},
    "pretrain": STAGE,
    "finetune": STAGE,
}


def carried_out(folder: Path, shards: Path, **given: Any) -> Plan:
    """Every run of a study, one after the other in this process; its plan, with the states before."""
    path = folder / f"{given['name']}.yaml"
    path.write_text(yaml.safe_dump({"data": {"shards": str(shards), "lanes": 4}} | given))
    plan = plan_study(load_study(path), folder)
    study = write_folders(plan, folder)
    for row in plan.rows:
        execute(load_run(study / row.config.run / rundir.CONFIG), study / row.config.run)
    return plan


def summary_of(run: Path) -> dict[str, Any]:
    found = rundir.read_json(run / rundir.SUMMARY)
    assert found is not None
    return found


def test_the_chain_to_a_larger_resolution(tmp_path: Path, shards: Path) -> None:
    """The recipes of the paper's sizes at 32 and then 48 px, whose last stage is one step that changes nothing.

    Head, norm and blocks are those that were finetuned, positions their bicubic enlargement round the class token.
    """
    further = {"images": BATCH, "global_batch": BATCH, "image_size": 48, "lr": 1e-12, "min_lr": 0.0}
    defaults = SMALL | {"finetune_384": further | {"drop_path": 0.0, "ema": 0.0, "weight_decay": 0.0}}
    axes = {"strategy": ["ar"], "size": ["pico"]}
    plan = carried_out(tmp_path, shards, name="chain", recipes=["arm", "arm_384"], axes=axes, defaults=defaults)
    assert [row.level for row in plan.rows] == [0, 1, 2]
    names = [row.config.run for row in plan.rows]
    assert names[2].startswith("ar-mamba-pico-finetune-48-s0-")
    before, after = (load_file(tmp_path / "chain" / name / WEIGHTS) for name in names[1:])
    assert set(before) == set(after)
    positions = "encoder.embedding.pos_embed"
    for name in set(after) - {positions}:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9)
    table = before[positions][0]  # 64 patches round a class token
    grid = torch.cat([table[:32], table[33:]]).T.reshape(1, -1, 8, 8)
    larger = F.interpolate(grid, size=(12, 12), mode="bicubic", align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(after[positions][0], torch.cat([larger[:72], table[32:33], larger[72:]]))
    rows = rundir.read_lines(tmp_path / "chain" / names[2] / rundir.EVALUATIONS)[0]
    assert [(row["protocol"], row["resolution"], row["images"]) for row in rows] == [("finetune", 48, 48)]
    assert summary_of(tmp_path / "chain" / names[2])["total_images_seen"] == 9 * BATCH


@pytest.mark.slow
def test_gpu_hours_are_matched_by_rates_that_runs_have_measured(tmp_path: Path, shards: Path) -> None:
    """A throughput study is run and collected; the arms planned by its runs.csv cost the same by its summaries."""
    defaults = SMALL | {stage: STAGE | {"lr": 1e-3} for stage in ("pretrain", "finetune")}
    axes = {"strategy": ["ar", "mae", "scratch"], "size": ["pico"]}
    plan = carried_out(tmp_path, shards, name="speed", purpose="throughput", axes=axes, defaults=defaults)
    write_tables(collect_runs(tmp_path / "speed"), tmp_path / "tables")
    found: dict[str, list[float]] = {}
    for row in plan.rows:
        key = row.config.strategy if row.config.stage == "pretrain" else "finetune"
        found.setdefault(key, []).append(summary_of(tmp_path / "speed" / row.config.run)[RATE])
    seconds = {key: 1 / statistics.median(rates) for key, rates in found.items()}

    fair = tmp_path / "fair.yaml"
    for stage in ("pretrain", "finetune"):
        defaults = defaults | {stage: defaults[stage] | {"images": 10_000 * BATCH}}
    study = {
        "name": "fair",
        "data": {"shards": str(shards)},
        "axes": axes | {"strategy": ["ar", "mae", "supervised", "scratch"]},
        "defaults": defaults,
        "match": "gpu_hours",
        "throughput": str(tmp_path / "tables" / "runs.csv"),
    }
    fair.write_text(yaml.safe_dump(study))
    spent: dict[str, float] = {}
    for row in plan_study(load_study(fair), tmp_path).rows:
        config = row.config
        key = config.strategy if config.stage == "pretrain" else "finetune"
        spent[config.strategy] = spent.get(config.strategy, 0.0) + (config.train.images or 0) * seconds[key]
    step = BATCH * max(seconds.values())
    assert abs(spent["mae"] - spent["ar"]) <= step
    assert abs(spent["supervised"] - spent["ar"]) <= step
    assert spent["scratch"] == pytest.approx(10_000 * BATCH * seconds["finetune"])
