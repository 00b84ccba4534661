"""The quickstart path with tiny numbers: every cell of the packaged study, real processes, real files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from scaling import rundir
from scaling.checkpoint import committed
from scaling.study.table import PACKAGED

HOME = Path(__file__).resolve().parents[2]
IMAGES, BATCH = 96, 16


def tiny_study(folder: Path, shards: Path, **changes: Any) -> Path:
    """The packaged quickstart with its images cut to a few steps."""
    study = yaml.safe_load((PACKAGED / "quickstart.yaml").read_text())
    study["data"] = {"shards": str(shards)}
    for stage in ("pretrain", "finetune"):
        study["defaults"][stage] |= {"images": IMAGES, "global_batch": BATCH, "checkpoint_every": 2, "log_every": 1}
    study["rules"][0]["set"]["finetune.images"] = 2 * IMAGES
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(study | {"name": "tiny"} | changes))
    return path


def armscale(*arguments: str | Path, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in its own process."""
    environment = os.environ | {"PYTHONPATH": str(HOME), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scaling.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, **options)


@pytest.mark.slow
def test_quickstart_path(tmp_path: Path, shards: Path) -> None:
    study = tiny_study(tmp_path, shards)
    launched = armscale("study", "launch", study, "--cluster", "local", "--jobs", "2", cwd=tmp_path)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "18 completed of 18 runs" in launched.stdout
    folder = tmp_path / "runs" / "tiny"
    assert yaml.safe_load((folder / rundir.STUDY).read_text())["name"] == "tiny"
    found = list(rundir.find_runs(folder))
    assert len(found) == 18
    for run in found:
        check_run_folder(run)

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.parent != folder}
    again = armscale("study", "launch", study, "--cluster", "local", cwd=tmp_path)
    assert again.returncode == 0
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.parent != folder}
    assert after == before, "a second launch must do nothing"

    reported = armscale("report", folder, "--output", folder / "report", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert (folder / "report" / "index.html").is_file()


def check_run_folder(run: Path) -> None:
    """Design section 4: files, keys, and numbers that agree with each other."""
    config = yaml.safe_load((run / rundir.CONFIG).read_text())
    summary = rundir.read_json(run / rundir.SUMMARY)
    status = rundir.read_json(run / rundir.STATUS)
    assert summary is not None and status is not None
    assert config["run"] == run.name
    assert tuple(summary) == rundir.SUMMARY_KEYS
    assert tuple(status) == rundir.STATUS_KEYS
    assert status["state"] == "completed"
    assert [path.name for path in (run / rundir.ATTEMPTS).iterdir()] == ["1"]
    metrics, torn = rundir.read_lines(run / rundir.METRICS)
    assert torn == 0
    steps = config["train"]["images"] // BATCH
    assert [row["step"] for row in metrics] == list(range(1, steps + 1))
    assert all(tuple(row) == rundir.METRIC_KEYS for row in metrics)
    assert metrics[-1]["images_seen"] == summary["images_seen"] == config["train"]["images"]
    evaluations, _ = rundir.read_lines(run / rundir.EVALUATIONS)
    assert [tuple(row) for row in evaluations] == [rundir.EVALUATION_KEYS]
    assert evaluations[0]["images"] == 48
    assert [path.name for path in committed(run)][-1] == f"step-{steps:08d}"
    assert {"versions", "git_commit", "hosts", "devices"} <= set(rundir.read_json(run / rundir.ENVIRONMENT) or {})
    if summary["stage"] == "finetune":
        assert summary["protocol"] == "finetune"
        assert 0.0 <= summary["top1"] <= 1.0
        assert evaluations[0]["top1"] == summary["top1"]
        assert summary["total_images_seen"] == 2 * IMAGES if summary["strategy"] != "scratch" else IMAGES
    else:
        assert summary["top1"] is None
        assert summary["pretrain_loss"] == evaluations[0]["loss"]
    with safe_open(run / "weights.safetensors", "pt") as weights:
        assert json.loads(weights.metadata()["encoder"])["width"] in (64, 96, 128)


ONE_CHAIN = {"axes": {"strategy": ["ar"], "encoder": ["mamba"], "size": ["pico"], "seed": [0]}, "rules": []}


def wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    """Polls until `condition()`; the process must not end before."""
    while not condition():
        assert process.poll() is None, "the launch ended too early"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_launch_continues_from_the_last_commit(tmp_path: Path, shards: Path) -> None:
    """kill -9 of the launcher: its runs save and leave; called again, nothing completed or saved is repeated."""
    study = tiny_study(tmp_path, shards, **ONE_CHAIN)
    environment = os.environ | {"PYTHONPATH": str(HOME), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scaling.cli", "study", "launch", str(study)]
    launcher = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    root = tmp_path / "runs" / "tiny"

    def pretraining() -> list[Path]:
        return list(root.glob("ar-mamba-pico-pretrain-*"))

    wait_for(lambda: pretraining() and committed(pretraining()[0])[1:], launcher)  # more than the state at its start
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    run = pretraining()[0]
    deadline = time.monotonic() + 60
    while (rundir.read_json(run / rundir.STATUS) or {}).get("state") == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    saved = int(committed(run)[-1].name.removeprefix("step-"))
    assert saved > 0

    again = armscale("study", "launch", study, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    rows, _ = rundir.read_lines(run / rundir.METRICS)
    if saved < IMAGES // BATCH:
        assert min(row["step"] for row in rows if row["attempt"] == 2) == saved + 1
    assert {row["step"] for row in rows} == set(range(1, IMAGES // BATCH + 1))


@pytest.mark.slow
def test_a_failed_run_blocks_its_children_and_nothing_else(tmp_path: Path, shards: Path) -> None:
    axes = {"strategy": ["ar", "scratch"], "encoder": ["mamba"], "size": ["pico"], "seed": [0]}
    study = tiny_study(tmp_path, shards, axes=axes, rules=[])
    planned = armscale("study", "plan", study, cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count("planned") == 3
    # A folder where the pretraining's checkpoints should go makes it, and only it, fail.
    listed = next(line for line in planned.stdout.splitlines() if "ar-mamba-pico-pretrain" in line)
    name = next(word for word in listed.replace("│", " ").split() if word.startswith("ar-mamba"))
    (tmp_path / "runs" / "tiny" / name).mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / name / rundir.CHECKPOINTS).write_text("in the way")
    launched = armscale("study", "launch", study, cwd=tmp_path)
    assert launched.returncode == 1
    states = {
        run.name.rsplit("-s0-", 1)[0]: (rundir.read_json(run / rundir.STATUS) or {})["state"]
        for run in rundir.find_runs(tmp_path / "runs" / "tiny")
    }
    assert states == {
        "ar-mamba-pico-pretrain": "failed",
        "ar-mamba-pico-finetune": "blocked",
        "scratch-mamba-pico-finetune": "completed",
    }
    status = armscale("study", "status", study, cwd=tmp_path)
    assert "blocked" in status.stdout
