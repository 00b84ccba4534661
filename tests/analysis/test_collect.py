"""Collecting: what counts, what is left out and why, and that reading again changes nothing."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from analysis import collect
from analysis.collect import collect_runs, update_tables
from analysis.report import write_report
from analysis.runfolder import keep_metrics
from analysis.tables import NAMES, Tables, read_tables, write_tables
from scaling.errors import UserError
from scaling.rundir import CONFIG, EVALUATIONS, METRICS, STATUS, STUDY, SUMMARY
from scaling.study.plan import run_state
from tests.analysis.folders import STEPS, append, evaluation, metric, write_run, write_study

FULL = bool(os.environ.get("ARMSCALE_FULL"))


def only(tables: Tables, name: str, folder: Path) -> pd.DataFrame:
    table = getattr(tables, name)
    return table[table["run"] == folder.name]


def test_a_finished_study_gives_every_run_and_excludes_none(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    tables = collect_runs(study)
    assert len(tables.runs) == len(tables.completed) == 3 * (2 + 2 + 1 + 1)
    assert len(tables.metrics) == 18 * STEPS // 5
    assert len(tables.evaluations) == 12
    assert tables.excluded.empty
    finetuned = tables.runs[tables.runs["stage"] == "finetune"]
    summaries = [json.loads((study / run / SUMMARY).read_text()) for run in finetuned["run"]]
    assert list(finetuned["top1"]) == [summary["top1"] for summary in summaries]
    assert list(finetuned["top1_error"]) == [1 - summary["top1"] for summary in summaries]
    assert set(finetuned["config.train.lr"]) == {1e-3}
    assert set(finetuned["data"]) == {"fashion-mnist"}


def test_root_study_and_run_folder_are_all_taken(tmp_path: Path) -> None:
    first = write_study(tmp_path, "first", strategies=("scratch",))
    write_study(tmp_path, "second", strategies=("scratch",))
    assert set(collect_runs(tmp_path).runs["study"]) == {"first", "second"}
    run = sorted(first.glob("scratch*"))[0]
    assert list(collect_runs(run).runs["run"]) == [run.name]


@pytest.mark.parametrize("state", ["queued", "running", "stopped", "failed", "cancelled", "blocked"])
def test_unfinished_runs_are_listed_with_their_state_and_not_used(tmp_path: Path, state: str) -> None:
    study = write_study(tmp_path, strategies=("scratch",))
    folder = write_run(study, "scratch", "tiny", state=state)
    tables = collect_runs(study)
    assert len(only(tables, "metrics", folder)) == STEPS // 5
    assert folder.name not in set(tables.completed["run"])
    assert list(only(tables, "excluded", folder)["state"]) == [state]


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_a_run_that_ended_between_its_summary_and_its_last_status_is_completed(tmp_path: Path, state: str) -> None:
    """As the launchers have it, which never start such a run again."""
    study = write_study(tmp_path, strategies=("scratch",))
    folder = next(study.glob("scratch*"))
    status = json.loads((folder / STATUS).read_text())
    (folder / STATUS).write_text(json.dumps(status | {"state": state, "error": "no space for the model card"}))
    tables = collect_runs(study)
    assert run_state(folder) == only(tables, "runs", folder)["state"].item() == "completed"
    assert len(tables.completed) == 3
    assert tables.excluded.empty


def test_every_damage_is_told_and_none_stops_the_rest(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("scratch",), seeds=(0, 1, 2))
    torn_config, torn_summary, no_status, no_config, odd_state, empty, percent = sorted(study.glob("scratch*"))[:7]
    (torn_config / CONFIG).write_text("strategy: [unclosed")
    (torn_summary / SUMMARY).write_text('{"top1": 0.')
    (no_status / STATUS).unlink()
    (no_config / CONFIG).unlink()
    (odd_state / STATUS).write_text('{"state": "dancing"}')
    (empty / METRICS).unlink()
    per_cent = json.loads((study / percent / SUMMARY).read_text()) | {"top1": 83.2}
    (percent / SUMMARY).write_text(json.dumps(per_cent))
    (study / "notes").mkdir()
    tables = collect_runs(study)
    reasons = tables.excluded.dropna(subset="run").set_index("run")["reason"].to_dict()
    assert set(reasons) == {folder.name for folder in (torn_config, torn_summary, no_config, odd_state, percent)}
    assert "config.yaml cannot be read" in reasons[torn_config.name]
    assert "summary.json is missing or torn" in reasons[torn_summary.name]
    assert "no config.yaml" in reasons[no_config.name]
    assert "83.2, not a fraction" in reasons[percent.name]
    assert "dancing" in reasons[odd_state.name]
    assert "status.json is missing" in only(tables, "runs", no_status)["notes"].item()
    assert only(tables, "metrics", empty).empty


def test_a_torn_last_line_is_counted_and_left_out(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("scratch",), sizes=("pico",))
    (folder,) = study.glob("scratch*")
    with (folder / METRICS).open("a") as file:
        file.write('{"step": 45, "lo')
    tables = collect_runs(study)
    assert len(tables.metrics) == STEPS // 5
    assert tables.runs["torn_lines"].item() == 1
    assert "1 torn line in metrics.jsonl" in tables.runs["notes"].item()


def test_the_highest_attempt_wins_and_the_rest_is_lost_work(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("scratch",), sizes=("pico",))
    (folder,) = study.glob("scratch*")
    append(folder / METRICS, *(metric("scratch", "pico", "finetune", 9, step, attempt=2) for step in (30, 35, 40)))
    append(folder / EVALUATIONS, evaluation(0.5, attempt=2), evaluation(0.4, step=20, attempt=2))
    tables = collect_runs(study)
    assert list(tables.metrics["step"]) == list(range(5, STEPS + 1, 5))
    assert list(tables.metrics["attempt"]) == [1] * 5 + [2] * 3
    assert tables.runs["lost_records"].item() == 3
    assert dict(zip(tables.evaluations["step"], tables.evaluations["top1"], strict=True)) == {20: 0.4, 40: 0.5}


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30)), max_size=40))
def test_what_is_kept_is_one_record_a_step_of_attempts_that_never_fall(lines: list[tuple[int, int]]) -> None:
    records = [{"attempt": attempt, "step": step, "line": line} for line, (attempt, step) in enumerate(lines)]
    kept, lost = keep_metrics(records)
    assert lost + len(kept) == len(records)
    steps, attempts = [record["step"] for record in kept], [record["attempt"] for record in kept]
    assert steps == sorted(set(steps))
    assert attempts == sorted(attempts)
    if records:
        highest = max(attempt for attempt, _ in lines)
        assert {step for attempt, step in lines if attempt == highest} == {
            record["step"] for record in kept if record["attempt"] == highest
        }


def test_cells_without_a_folder_are_missing_unless_the_study_excludes_them(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("ar", "scratch"), sizes=("pico", "nano"), seeds=(0, 1))
    text = (study / "study.yaml").read_text() + "exclude:\n- {strategy: scratch, seed: [1, 2]}\n"
    (study / "study.yaml").write_text(text)
    for folder in [*study.glob("ar-*-nano-*-s1-*"), *study.glob("scratch-*-s1-*")]:
        folder.rename(tmp_path / folder.name)
    missing = collect_runs(study).excluded
    assert missing[["strategy", "size", "seed", "state"]].to_numpy().tolist() == [["ar", "nano", 1.0, "missing"]]


def test_a_cell_is_excluded_by_its_value_on_an_axis_of_lists(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("scratch",), sizes=("pico", "nano"))
    text = (study / "study.yaml").read_text().replace("axes:\n", "axes:\n  finetune.betas: [[0.9, 0.95]]\n")
    (study / "study.yaml").write_text(text + "exclude:\n- {size: nano, finetune.betas: [0.9, 0.95]}\n")
    for folder in study.glob("scratch-*-nano-*"):
        folder.rename(tmp_path / folder.name)
    assert collect_runs(study).excluded.empty


def test_a_cell_of_which_only_the_pretraining_or_a_trial_is_there_is_missing(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("ar", "scratch"), sizes=("pico", "nano"))
    for folder in [*study.glob("ar-*-nano-finetune-*"), *study.glob("scratch-*-nano-*")]:
        config = (folder / CONFIG).read_text().replace("workers: 0", "workers: 0\n  held_out: 0.05")
        (folder / CONFIG).write_text(config)
    missing = collect_runs(study).excluded
    missing = missing[missing["state"] == "missing"]
    assert missing[["strategy", "size", "stage"]].fillna("").to_numpy().tolist() == [
        ["ar", "nano", "finetune"], ["scratch", "nano", ""]
    ]  # fmt: skip


def test_written_tables_read_back_and_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    tables = collect_runs(write_study(tmp_path))
    for output in ("one", "two"):
        write_tables(tables, tmp_path / output)
    back = read_tables(str(tmp_path / "one"))  # as people write it in a notebook
    for name in NAMES:
        assert_frame_equal(getattr(back, name), getattr(tables, name))
        for kind in ("csv", "parquet"):
            path = Path("one") / f"{name}.{kind}"
            assert (tmp_path / path).read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert len(pd.read_csv(tmp_path / "one" / "metrics.csv")) == len(tables.metrics)


def test_collecting_again_reads_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(tmp_path, seeds=(0, 1))
    first = collect_runs(study)
    read: list[str] = []
    real = collect.read_run

    def counting(folder: Path, name: str) -> collect.RunFolder:
        read.append(folder.name)
        return real(folder, name)

    monkeypatch.setattr(collect, "read_run", counting)
    collect_runs(study, first)
    assert read == []
    changed, removed, *_ = sorted(study.glob("ar-*"))
    append(changed / METRICS, metric("ar", "micro", "finetune", 0, 45))
    (removed / CONFIG).unlink()
    for path in removed.iterdir():
        path.unlink()
    removed.rmdir()
    added = write_run(study, "supervised", "tiny", state="running")
    again = collect_runs(study, first)
    assert set(read) == {changed.name, added.name}
    fresh = collect_runs(study)
    for field in fields(Tables):
        assert_frame_equal(getattr(again, field.name), getattr(fresh, field.name), check_like=True)


@pytest.mark.slow
def test_of_a_large_study_every_file_is_read_once_and_then_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About 10,000 run folders in the full form; the report of so many stays a page that a browser can hold."""
    sizes, seeds = ("pico", "nano", "micro", "tiny", "small"), tuple(range(333 if FULL else 8))
    study, folder = write_study(tmp_path, sizes=sizes, seeds=seeds), tmp_path / "tables"
    runs, finetuned, read = 30 * len(seeds), 20 * len(seeds), Counter[str]()
    real = Path.read_text

    def counting(path: Path, *arguments: Any, **options: Any) -> str:
        text = real(path, *arguments, **options)
        read[path.name] += 1
        return text

    monkeypatch.setattr(Path, "read_text", counting)
    tables = update_tables(study, folder)
    assert len(tables.completed) == runs
    assert read == dict.fromkeys((CONFIG, STATUS, SUMMARY, METRICS), runs) | {EVALUATIONS: finetuned, STUDY: 1}
    read.clear()
    update_tables(study, folder)
    assert read == {STUDY: 1}
    append(next(study.glob("scratch*")) / EVALUATIONS, evaluation(0.9, step=20))
    read.clear()
    assert len(update_tables(study, folder).evaluations) == finetuned + 1
    assert read == dict.fromkeys((CONFIG, STATUS, SUMMARY, METRICS, EVALUATIONS, STUDY), 1)
    if FULL:
        text = write_report(folder).read_text()
        assert len(text) < 10_000_000
        assert text.count("<td") < 20_000
        assert max(path.stat().st_size for path in (folder / "report").glob("figures/*.svg")) < 2_000_000


def test_updating_writes_only_the_tables_that_changed(tmp_path: Path) -> None:
    study, folder = write_study(tmp_path, strategies=("scratch",)), tmp_path / "tables"
    update_tables(study, folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    update_tables(study, folder)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    append(next(study.glob("scratch*")) / EVALUATIONS, evaluation(0.9, step=20))
    update_tables(study, folder)
    changed = {path.stem for path in folder.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"evaluations", "sources"}
    (folder / "runs.csv").unlink()
    update_tables(study, folder)
    assert (folder / "runs.csv").is_file()


def test_tables_of_an_earlier_version_are_collected_again(tmp_path: Path) -> None:
    study, folder = write_study(tmp_path, strategies=("scratch",)), tmp_path / "tables"
    update_tables(study, folder)
    runs = pd.read_parquet(folder / "runs.parquet")
    runs.drop(columns="resolution").to_parquet(folder / "runs.parquet")
    with pytest.raises(UserError, match=r"no column resolution.*collect again"):
        read_tables(folder)
    update_tables(study, folder)
    assert_frame_equal(read_tables(folder).runs, runs)


def test_workers_change_nothing(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("scratch",), seeds=tuple(range(24)))
    alone, together = collect_runs(study), collect_runs(study, workers=2)
    for name in NAMES:
        assert_frame_equal(getattr(alone, name), getattr(together, name))


def test_config_fields_of_mixed_types_become_text(tmp_path: Path) -> None:
    study = write_study(tmp_path, strategies=("scratch",), sizes=("pico", "nano"))
    first, second = sorted(study.glob("scratch*"))
    (first / CONFIG).write_text((first / CONFIG).read_text() + "extra: 3\n")
    (second / CONFIG).write_text((second / CONFIG).read_text() + "extra: three\n")
    tables = collect_runs(study)
    assert sorted(tables.runs["config.extra"]) == ["3", "three"]
    write_tables(tables, tmp_path / "tables")


def test_places_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder of studies"):
        collect_runs(tmp_path / "absent")
    with pytest.raises(UserError, match=r"a run has a config\.yaml"):
        collect_runs(tmp_path)
    with pytest.raises(UserError, match="armscale collect"):
        read_tables(tmp_path)
