"""Bad steps: masked alone, taken back in a row, and what a run says when it gives up."""

import dataclasses
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from scaling import rundir
from scaling.config import FaultsConfig, RunConfig
from scaling.health import WINDOW, Health
from scaling.steps import Step
from tests.scaling.runs import BATCH, curve, environment, small_config, write_run


def step(number: int, loss: float) -> Step:
    return Step(number, 16 * number, 16 * number, 0, 1e-3, 0.1, 0.0, loss=loss, norm=1.0)


def fed(losses: list[float], **limits: float) -> Health:
    health = Health(FaultsConfig(**limits), [])  # type: ignore[arg-type]
    for number, loss in enumerate(losses, start=1):
        health.judge(step(number, loss))
    return health


def test_noise_and_trends_are_no_illness() -> None:
    """Five thousand losses of a falling curve with normal noise of 5 %, and their jump down at a restart."""
    drawn = random.Random(0)
    falling = [(1 + 5 * math.exp(-n / 200)) * (1 + 0.05 * drawn.gauss(0, 1)) for n in range(5000)]
    health = Health(FaultsConfig(bad_steps=1), [])
    for number, loss in enumerate([*falling, *falling[2000:]]):
        health.judge(step(number, loss))
        assert not health.suspicious
    assert len(health.losses) == WINDOW


@pytest.mark.parametrize("bad", [math.nan, math.inf, 30.0])
def test_bad_steps_in_a_row(bad: float) -> None:
    calm = [2.0 + 0.01 * (n % 3) for n in range(40)]
    assert fed([*calm, bad, bad], bad_steps=2).ill
    assert fed([*calm, bad, 2.0, bad], bad_steps=2).suspicious
    assert not fed([*calm, bad, 2.0, bad], bad_steps=2).ill
    assert not fed([*calm, bad, bad, 2.0], bad_steps=3).suspicious
    assert fed([*calm, bad, bad], bad_steps=2, spike=0.0).ill == (not math.isfinite(bad))


def test_few_losses_make_no_spike() -> None:
    assert not fed([1.0] * 8 + [50.0] * 8, bad_steps=1).ill


def config_of(shards: Path, steps: int, **changes: object) -> RunConfig:
    faults = FaultsConfig(bad_steps=2, rollbacks=1)
    return small_config(shards, images=steps * BATCH, checkpoint_every=10, faults=faults, **changes)


def run_disturbed(folder: Path, kind: str, first: int, last: int, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*start, "-m", "tests.scaling.disturbed", str(folder), kind, str(first), str(last)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_nan_on_one_rank_is_skipped_by_all(tmp_path: Path, shards: Path) -> None:
    """Rank 1 of 2 has a NaN in step 3: that step counts as skipped, and the run ends as one rank alone ends it."""
    spread = write_run(dataclasses.replace(config_of(shards, 6), engine="ddp"), tmp_path / "spread")
    alone = write_run(config_of(shards, 6), tmp_path / "alone")
    position = 2 * BATCH + BATCH - 3  # the second half of a batch is rank 1's
    for folder, ranks in ((spread, 2), (alone, 1)):
        ended = run_disturbed(folder, "nan", position, position, ranks)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    ours, theirs = (rundir.read_lines(folder / rundir.METRICS)[0] for folder in (spread, alone))
    for rows in (ours, theirs):
        assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1, 1]
        assert [row["loss"] is None for row in rows] == [False, False, True, False, False, False]
        assert {row["attempt"] for row in rows} == {1}
    for mine, expected in zip(curve(ours), curve(theirs), strict=True):
        assert mine == expected if expected[1] is None else mine == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_spike_is_taken_back_once(tmp_path: Path, shards: Path) -> None:
    """Loud targets in steps 45 and 46, after the checkpoint of 40: back there as attempt 2, on with later images."""
    mixed = {"mix_group": 4, "randaugment": ""}
    folder = write_run(config_of(shards, 60, stage="finetune", strategy="scratch", **mixed), tmp_path)
    ended = run_disturbed(folder, "loud", 44 * BATCH, 46 * BATCH - 1)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr.count("back to step 40") == 1
    rows = rundir.read_lines(folder / rundir.METRICS)[0]
    first, second = ([row for row in rows if row["attempt"] == attempt] for attempt in (1, 2))
    assert len(first) + len(second) == len(rows)
    assert [row["step"] for row in first][:44] == list(range(1, 45))
    assert [row["step"] for row in second] == list(range(41, 61))
    lost = {row["skipped_steps"] for row in second}
    assert len(lost) == 1
    assert lost.pop() in (6, 7)  # steps 41 to 46 and, read a step late, perhaps 47
    assert max(row["loss"] for row in second) < 2 * first[39]["loss"]
    assert second[-1]["images_seen"] == 60 * BATCH
    bundle = json.loads((folder / rundir.LOGS / "bad-steps-1.json").read_text())
    assert [bad["number"] for bad in bundle["steps"]] == [45, 46]
    assert bundle["steps"][0]["first_position"] == 44 * BATCH
    assert all(len(bad["keys"]) == BATCH and bad["norm"] > 0 for bad in bundle["steps"])


@pytest.mark.slow
def test_after_a_rollback_zero_computes_with_the_weights_of_the_checkpoint(tmp_path: Path, shards: Path) -> None:
    """ZeRO's modules hold copies of the weights that a checkpoint fills; a run alone on its rank has none."""
    config = config_of(shards, 20, lr=1e-2)
    alone = write_run(config, tmp_path / "alone")
    copies = write_run(dataclasses.replace(config, engine="deepspeed"), tmp_path / "copies")
    for folder in (alone, copies):
        ended = run_disturbed(folder, "nan", 14 * BATCH, 16 * BATCH - 1)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "back to step 10" in ended.stderr
    ours, theirs = (curve(rundir.read_lines(folder / rundir.METRICS)[0]) for folder in (copies, alone))
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_run_that_stays_ill_fails_with_its_bundle(tmp_path: Path, shards: Path) -> None:
    folder = write_run(config_of(shards, 30), tmp_path)
    ended = run_disturbed(folder, "nan", 14 * BATCH, 10_000 * BATCH)
    assert ended.returncode == 1
    status = rundir.read_json(folder / rundir.STATUS)
    assert status is not None
    assert (status["state"], status["attempt"]) == ("failed", 2)
    assert "after 1 rollbacks" in status["error"]
    bundles = [json.loads((folder / rundir.LOGS / f"bad-steps-{n}.json").read_text()) for n in (1, 2)]
    assert [bundle["rollbacks"] for bundle in bundles] == [0, 1]
    assert all(bad["loss"] is None for bundle in bundles for bad in bundle["steps"])
    assert sorted(path.name for path in (folder / rundir.CHECKPOINTS).glob("step-*"))[-1] == "step-00000010"
