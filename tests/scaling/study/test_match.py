"""Fair comparison: what the arms of a study cost in the unit that they are matched in."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.flops import forward_macs
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.study.chains import runs
from scaling.study.match import RATE
from scaling.study.plan import plan_study
from scaling.study.table import PACKAGED, load_study

BATCH = 64
STAGE = {"global_batch": BATCH, "image_size": 32, "lr": 1e-3}
STUDY: dict[str, Any] = {
    "name": "fair",
    "data": {"shards": "x"},
    "axes": {"strategy": ["ar", "mae", "supervised", "scratch"], "size": ["pico", "nano"], "seed": [0, 1]},
    "defaults": {
        "model.patch_size": 4,
        "ar": {"cluster_side": 2, "decoder_depth": 2, "decoder_width": 64},
        "mae": {"decoder_depth": 2, "decoder_width": 64, "decoder_heads": 1},
        "pretrain": STAGE | {"images": 640_000},
        "finetune": STAGE | {"images": 64_000},
    },
}
Arms = dict[tuple[str, str, int], dict[str, RunConfig]]


def arms(tmp_path: Path, samples: int | None = None, **changes: Any) -> Arms:
    """{(strategy, size, seed): {stage: run}} of a study."""
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes))
    found: Arms = defaultdict(dict)
    for run in runs(load_study(path), "f", samples, 10):
        found[run.strategy, run.size, run.seed][run.stage] = run
    return found


def images(stages: dict[str, RunConfig]) -> dict[str, int]:
    return {stage: run.train.images or 0 for stage, run in stages.items()}


def flops(run: RunConfig) -> float:
    """Operations of a run: forward and twice that backward, two a multiply-accumulate, convolutions apart."""
    macs = forward_macs(run.encoder_config(), run.objective_config(10))
    return 6.0 * (macs.total - macs.conv) * (run.train.images or 0)


def test_equal_images(tmp_path: Path) -> None:
    found = arms(tmp_path, match="images")
    assert len(found) == 16
    for (strategy, _, _), stages in found.items():
        if strategy == "scratch":
            assert images(stages) == {"finetune": 64_000}
        else:
            assert sum(images(stages).values()) == 704_000
            assert images(stages).get("pretrain", 640_000) == 640_000


def test_without_match_nothing_changes(tmp_path: Path) -> None:
    assert images(arms(tmp_path)["supervised", "pico", 0]) == {"finetune": 64_000}


def test_equal_flops(tmp_path: Path) -> None:
    """The first arm keeps its length; the others come within one step of it, scans counted."""
    found = arms(tmp_path, match="flops")
    for size in ("pico", "nano"):
        first = found["ar", size, 0]
        assert images(first) == {"pretrain": 640_000, "finetune": 64_000}
        budget = sum(map(flops, first.values()))
        for strategy in ("mae", "supervised"):
            stages = found[strategy, size, 1]
            changed = stages["pretrain" if strategy == "mae" else "finetune"]
            step = flops(changed) / (changed.train.images or 1) * BATCH
            assert abs(sum(map(flops, stages.values())) - budget) <= step / 2
            assert (changed.train.images or 0) % BATCH == 0
        assert images(found["mae", size, 0])["finetune"] == 64_000
        assert images(found["scratch", size, 0]) == {"finetune": 64_000}


def test_epochs_of_a_known_data_set(tmp_path: Path) -> None:
    defaults = STUDY["defaults"] | {"pretrain": STAGE | {"epochs": 10}, "finetune": STAGE | {"epochs": 1}}
    found = arms(tmp_path, samples=64_000, match="images", defaults=defaults)
    assert images(found["supervised", "pico", 0]) == {"finetune": 704_000}
    with pytest.raises(UserError, match="built-in source"):
        arms(tmp_path, match="images", defaults=defaults)


def rates(folder: Path, kind: str) -> str:
    """A table of measured rates, as a list of rows or as the csv of collected runs."""
    measured = {"ar": ("pretrain", 100.0), "mae": ("pretrain", 50.0), "scratch": ("finetune", 80.0)}
    rows = [
        {"strategy": strategy, "encoder": "mamba", "size": size, "stage": stage, "image_size": 32, RATE: rate}
        for size in ("pico", "nano")
        for strategy, (stage, rate) in measured.items()
    ]
    path = folder / f"rates.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    else:
        lines = [[*list(row.values())[:4], "32.0", row[RATE], "x"] for row in rows]
        head = f"strategy,encoder,size,stage,config.train.image_size,{RATE},notes"
        path.write_text("\n".join([head, *(",".join(map(str, line)) for line in lines)]))
    return str(path)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_equal_gpu_hours(tmp_path: Path, kind: str) -> None:
    """Half the rate, half the images: 640,000 / 100 and 64,000 / 80 seconds are there to be spent."""
    found = arms(tmp_path, match="gpu_hours", throughput=rates(tmp_path, kind))
    assert images(found["ar", "pico", 0]) == {"pretrain": 640_000, "finetune": 64_000}
    assert images(found["mae", "pico", 0]) == {"pretrain": 320_000, "finetune": 64_000}
    assert images(found["supervised", "nano", 1]) == {"finetune": (6400 + 800) * 80}


def test_budget_of_an_axis(tmp_path: Path) -> None:
    axes = {"strategy": ["ar", "supervised", "scratch"], "size": ["pico"], "budget": [128_000, 256_000]}
    found = runs(_study(tmp_path, match="images", axes=axes), "f")
    assert sorted((run.strategy, run.stage, run.train.images or 0) for run in found) == [
        ("ar", "finetune", 64_000), ("ar", "finetune", 64_000), ("ar", "pretrain", 64_000), ("ar", "pretrain", 192_000),
        ("scratch", "finetune", 64_000), ("supervised", "finetune", 128_000), ("supervised", "finetune", 256_000),
    ]  # fmt: skip


def _study(tmp_path: Path, **changes: Any) -> Any:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes))
    return load_study(path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"match": "hours"}, "images, flops, gpu_hours"),
        ({"match": "gpu_hours"}, "needs measured rates"),
        ({"match": "gpu_hours", "throughput": "nowhere.json"}, "nowhere.json"),
        ({"match": "images", "axes": {"strategy": ["ar"], "budget": [1000]}}, "ar-mamba-base needs 6.4e"),
        ({"match": "images", "axes": {"strategy": ["supervised", "ar"], "size": ["pico"]}}, "ar-mamba-pico needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_matched(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        arms(tmp_path, **changes)


def test_a_rate_that_was_not_measured(tmp_path: Path) -> None:
    axes = STUDY["axes"] | {"size": ["micro"]}
    with pytest.raises(UserError, match="no ar mamba micro pretrain 32") as caught:
        arms(tmp_path, match="gpu_hours", throughput=rates(tmp_path, "json"), axes=axes)
    assert "mae mamba nano pretrain 32" in str(caught.value)


def test_isoflop_spends_its_budgets(tmp_path: Path) -> None:
    """Every cell of the packaged study costs its budget to within a step, at four sizes and four budgets."""
    study = load_study(PACKAGED / "isoflop.yaml")
    rows = plan_study(study, tmp_path).rows
    spent: dict[str, float] = {}
    totals: list[float] = []
    for row in rows:
        own = (row.cost.train_flops or 0) + (row.cost.scan_flops or 0)
        spent[row.config.run] = own + spent.get(row.config.parent or "", 0.0)
        if row.config.stage == "finetune" and row.config.strategy != "scratch":
            totals.append(spent[row.config.run])
    budgets = [3e18, 1e19, 3e19, 1e20]
    assert len(totals) == 3 * 4 * 4
    for budget in budgets:
        assert sum(total == pytest.approx(budget, rel=1e-3) for total in totals) == 3 * 4
