"""A study of a few steps for the four-node cluster, and its undisturbed twin on this machine alone."""

from pathlib import Path

import yaml

from scaling import rundir
from slurm.batches import read_batches
from tests.scaling.runs import curve
from tests.scaling.test_quickstart import armscale
from tests.slurm.polling import eventually

BATCH, STEPS, LONG_STEPS = 16, 4, 300
SITE = {"partition": "low", "cpus_per_rank": 1}


def write_study(folder: Path, shards: Path, *, nodes: int = 2, ranks_per_node: int = 2, seeds: int = 2) -> Path:
    """A pretraining a seed, each with a finetuning: on `nodes` x `ranks_per_node` with ddp, or one process alone."""
    ranks = nodes * ranks_per_node
    stage = {
        "images": STEPS * BATCH, "global_batch": BATCH, "image_size": 32, "lr": 1e-3, "warmup": 0.2, "log_every": 1,
        "checkpoint_every": 1, "eval_resize": "none", "eval_batch": 48,
    }  # fmt: skip
    off = {"drop_path": 0.0, "ema": 0.0, "mixup": 0.0, "cutmix": 0.0, "randaugment": "", "erasing": 0.0}
    study = {
        "name": "tiny",
        "data": {"shards": str(shards), "lanes": 4},
        "axes": {"strategy": ["ar"], "size": ["pico"], "seed": list(range(seeds))},
        "defaults": {
            "engine": "ddp" if ranks > 1 else "single",
            "model": {"depth": 2, "width": 32, "patch_size": 4},
            "ar": {"cluster_side": 2, "decoder_depth": 2, "decoder_width": 32},
            "pretrain": stage,
            "finetune": stage | off,
        },
        "resources": {"nodes": nodes, "gpus_per_node": ranks_per_node, "time": "00:10:00"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site.yaml").write_text(yaml.safe_dump(SITE))
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def write_long_run(
    folder: Path, shards: Path, *, nodes: int, steps: int = LONG_STEPS, checkpoint_every: int = 10**9
) -> Path:
    """One run that lasts long enough to be disturbed; unless told to, it saves at its end or when asked alone."""
    study = write_study(folder, shards, nodes=nodes, ranks_per_node=1)
    given = yaml.safe_load(study.read_text())
    given["axes"] = {"strategy": ["scratch"], "size": ["pico"], "seed": [0]}
    given["defaults"]["finetune"] |= {"images": steps * BATCH, "checkpoint_every": checkpoint_every}
    study.write_text(yaml.safe_dump(given))
    return study


def launch(study: Path, *options: str) -> str:
    """Submits the study from its folder; what the command said."""
    given = ("--cluster", "slurm", "--site", "site.yaml", *options)
    ended = armscale("study", "launch", study.name, *given, cwd=study.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def run_folders(study: Path) -> list[Path]:
    return list(rundir.find_runs(study.parent / "runs"))


def completed(study: Path) -> bool:
    return all((run / rundir.SUMMARY).is_file() for run in run_folders(study))


def story(study: Path) -> str:
    """What the runs and jobs said, for a failing test."""
    folder = study.parent / "runs"
    told = [f"{run.name}: {rundir.read_json(run / rundir.STATUS)}" for run in run_folders(study)]
    logs = sorted([*folder.glob("*/slurm/*/*.log"), *folder.glob("*/*/logs/run.log")])
    return "\n".join([*told, *(f"--- {log}\n{log.read_text()[-2000:]}" for log in logs)])


def wait_until_completed(study: Path, seconds: float = 900) -> None:
    try:
        eventually(lambda: completed(study), "every run completed", seconds)
    except AssertionError as error:
        raise AssertionError(story(study)) from error


def last_job(study: Path) -> str:
    """Slurm's id of the one task of the last batch."""
    batch = read_batches(study.parent / "runs" / "tiny")[-1]
    (task,) = batch.runs
    return f"{batch.job}_{task}"


def curves(study: Path) -> dict[str, list[tuple[int, float, float]]]:
    return {run.name: curve(rundir.read_lines(run / rundir.METRICS)[0]) for run in run_folders(study)}
