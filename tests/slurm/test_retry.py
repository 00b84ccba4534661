"""A run that really runs out of memory, and its retry with less to do at a time, on other nodes."""

from pathlib import Path

import pytest
import yaml

from scaling import rundir
from slurm.cluster.layout import Layout
from slurm.history import read_starts
from slurm.queue import read_jobs
from tests.scaling.test_quickstart import armscale
from tests.slurm import studies
from tests.slurm.polling import eventually, run

LIMIT_KIB = 3_000_000
"""Of a process's address space: a micro-batch of 4 needs less than 2.5 GB of it, one of 192 more than 3.5 GB."""


@pytest.mark.slurm
@pytest.mark.slow
def test_a_run_out_of_memory_is_retried_with_other_resources(cluster: Layout, tmp_path: Path, shards: Path) -> None:
    study = studies.write_long_run(tmp_path, shards, nodes=1, steps=1)
    given = yaml.safe_load(study.read_text())
    given["defaults"]["model"]["patch_size"] = 1
    given["defaults"]["finetune"] |= {"images": 192, "global_batch": 192, "eval_batch": 4}
    study.write_text(yaml.safe_dump(given))
    site = studies.SITE | {"setup": [f"ulimit -v {LIMIT_KIB}"], "exclude": ["n4"]}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    studies.launch(study)
    first = studies.last_job(study)
    eventually(lambda: not read_jobs([first])[first].alive, "the job ends", 180)
    told = armscale("study", "status", study.name, cwd=tmp_path).stdout
    assert "out of memory" in told and "t allocate memory" in told and "run.log" in told, studies.story(study)

    changes = ("train.micro_batch=4", "--memory", "2G", "--exclude-nodes", "n[1-2]", "--site", "site.yaml")
    retried = armscale("study", "retry", study.name, *changes, cwd=tmp_path)
    assert "1 of 1 runs submitted" in retried.stdout, retried.stdout + retried.stderr
    second = studies.last_job(study)
    shown = run("scontrol", "show", "job", second)
    assert "MinMemoryNode=2G" in shown and "ExcNodeList=n[1-2,4]" in shown
    studies.wait_until_completed(study, 180)
    (folder,) = studies.run_folders(study)
    assert yaml.safe_load((folder / rundir.CONFIG).read_text())["train"]["micro_batch"] == 4
    eventually(lambda: [start.outcome for start in read_starts(folder)] == ["failed", "completed"], "its record")
    assert read_starts(folder)[-1].nodes == ("n3",)
