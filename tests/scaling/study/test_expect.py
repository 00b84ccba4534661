"""Device hours from what was measured, else from a named assumption; what is left; retries with other resources."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.config import ARConfig
from scaling import files, rundir
from scaling.config import ModelConfig
from scaling.devices import DEVICES, dense_peak
from scaling.errors import UserError
from scaling.study import table
from scaling.study.changes import with_changes
from scaling.study.expect import ASSUMED_DEVICE, ASSUMED_MFU, Measured, expect, read_measured, work_of
from scaling.study.fit import require_fit
from scaling.study.folders import write_folders
from scaling.study.plan import Plan, plan_study
from scaling.study.remaining import duration, remaining
from scaling.study.table import load_study
from tests.scaling.test_quickstart import tiny_study


@pytest.fixture
def plan(tmp_path: Path, shards: Path) -> Plan:
    return plan_study(load_study(tiny_study(tmp_path, shards)), tmp_path / "runs")


def test_without_measurements_the_assumed_utilisation_counts(plan: Plan) -> None:
    row = plan.rows[0]
    flops = (row.cost.train_flops or 0) + (row.cost.scan_flops or 0)
    peak = dense_peak(ASSUMED_DEVICE, "bf16")
    assert peak is not None
    found = expect(row, Measured())
    assert found.device_hours == pytest.approx(flops / (ASSUMED_MFU * peak) / 3600)
    assert found.measured == ""
    with pytest.raises(UserError, match="--device"):
        expect(row, Measured("abacus"))


def test_every_device_that_is_known_can_be_planned_for(plan: Plan) -> None:
    """Those without bf16 by their fp32."""
    hours = {name: expect(plan.rows[0], Measured(name)).device_hours for name in DEVICES}
    assert all(hours.values())
    assert (hours["V100"] or 0) / (hours["H100"] or 0) == pytest.approx(989e12 / 15.7e12)


def test_completed_runs_are_measurements_of_their_equals(plan: Plan, tmp_path: Path) -> None:
    write_folders(plan, tmp_path / "runs")
    first = plan.rows[0]
    folder = tmp_path / "runs" / plan.study.name
    for row, rate in zip(plan.rows[:1], (250.0,), strict=True):
        summary = {"images_per_second_per_device": rate, "device": "H100 80GB"}
        files.write_json(folder / row.config.run / rundir.SUMMARY, summary)
    plan = replace(plan, rows=[replace(first, state="completed"), *plan.rows[1:]])
    alike = [row for row in plan.rows if work_of(row.config) == work_of(first.config)]
    for measured in (read_measured(plan, tmp_path / "runs", []), read_measured(plan, tmp_path, [folder], "H100")):
        for row in alike:
            found = expect(row, measured)
            assert found.device_hours == pytest.approx((row.cost.images or 0) / 250 / 3600)
            assert found.measured == "H100 80GB"
        assert all(not expect(row, measured).measured for row in plan.rows if row not in alike)
    assert not expect(first, read_measured(plan, tmp_path / "runs", [], "A100")).measured


def test_a_bench_of_whole_steps_is_a_measurement(plan: Plan, tmp_path: Path) -> None:
    config = plan.rows[0].config
    case = {
        "strategy": config.strategy, "encoder": config.encoder, "size": config.size, "stage": config.stage,
        "precision": config.precision,
    }  # fmt: skip
    rows = [
        {"name": "baseline official-loop", "images_per_second": 900.0},
        {"name": "torch eager", "images_per_second": 100.0},
        {"name": "torch compiled", "images_per_second": 120.0},
        {"name": "cuda eager", "error": "no memory"},
    ]
    report = {"case": case, "image_size": config.train.image_size, "device": "cpu", "devices": 1, "results": rows}
    (tmp_path / "step.json").write_text(json.dumps(report))
    rate = read_measured(plan, tmp_path, [tmp_path / "step.json"]).rate(config)
    assert rate is not None and rate.images_per_second == 120.0
    (tmp_path / "step.json").write_text("{}")
    with pytest.raises(UserError, match="--measured"):
        read_measured(plan, tmp_path, [tmp_path / "step.json"])


def test_what_is_left_goes_by_the_rates_reached(plan: Plan, tmp_path: Path) -> None:
    assert remaining(plan, tmp_path).study is None
    write_folders(plan, tmp_path)
    running = plan.rows[0]
    line = {"images_seen": 10, "images_per_second": 5.0, "attempt": 1}
    (tmp_path / plan.study.name / running.config.run / rundir.METRICS).write_text(json.dumps(line) + "\n")
    alone = replace(plan, rows=[replace(running, state="running")])
    left = ((running.cost.images or 0) - 10) / 5
    assert remaining(alone, tmp_path).runs == {running.config.run: pytest.approx(left)}
    assert remaining(alone, tmp_path).study == pytest.approx(left)
    whole = remaining(replace(plan, rows=[replace(running, state="running"), *plan.rows[1:]]), tmp_path).study
    assert whole is not None and whole > left
    assert [duration(seconds) for seconds in (40, 720, 12_000, 187_200)] == ["40 s", "12 min", "3 h 20 min", "2 d 4 h"]


def test_a_retry_changes_what_changes_no_result_and_nothing_else(plan: Plan) -> None:
    failed = replace(plan, rows=[replace(plan.rows[0], state="failed"), *plan.rows[1:]])
    with pytest.raises(UserError, match=r"engine: 'single' .*2 ranks"):
        with_changes(failed, ["train.micro_batch=4", "resources.nodes=2"])
    changed = with_changes(failed, ["train.micro_batch=4", "resources.nodes=2", "engine=ddp"])
    assert (changed.rows[0].config.train.micro_batch, changed.rows[0].config.resources.nodes) == (4, 2)
    assert changed.rows[0].config.run == failed.rows[0].config.run
    assert changed.rows[1:] == failed.rows[1:]
    with pytest.raises(UserError, match="change the result"):
        with_changes(failed, ["train.lr=0.5"])


def test_two_thousand_runs_merge_what_their_cells_share_once(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge costs 40 ms: none is done again for every seed."""
    calls: list[object] = []
    original = table.merge
    monkeypatch.setattr(table, "merge", lambda *given: calls.append(given) or original(*given))
    study = load_study(tiny_study(tmp_path, shards))
    seeds = 2000 // len(plan_study(study, tmp_path).rows) * len(study.axes["seed"]) + 1
    before = len(calls)
    many = plan_study(replace(study, axes={**study.axes, "seed": list(range(seeds))}), tmp_path)
    assert len(many.rows) > 1900
    assert len(calls) - before <= 40


def test_a_run_that_cannot_fit_is_refused_with_its_reason(plan: Plan) -> None:
    require_fit(plan, "H100")
    large = replace(
        plan.rows[0].config,
        size="huge",
        model=ModelConfig(),
        train=replace(plan.rows[0].config.train, global_batch=4096, image_size=192),
    )
    row = replace(plan.rows[0], config=replace(large, ar=ARConfig()))
    with pytest.raises(UserError, match=r"needs .* GiB a rank.*activations"):
        require_fit(replace(plan, rows=[row]), "H100")
    require_fit(replace(plan, rows=[replace(row, state="completed")]), "H100")
