"""Runs to arrays to scripts: shapes, numbers of children, limits of the site."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from scaling.cli.study import app
from scaling.config import ResourcesConfig, RunConfig
from scaling.cost import Cost
from scaling.errors import UserError
from scaling.study.folders import write_folders
from scaling.study.plan import Row, plan_study
from scaling.study.table import load_study
from slurm.batches import JOB, Batch, next_batches, read_batches, write_batch
from slurm.cancel import cancel
from slurm.emit import emit
from slurm.launcher import Array, arrange, prepare
from slurm.script import Shape, overriding, script, shape_of
from slurm.site import Site, read_site
from slurm.states import Standing
from tests.slurm.studies import write_study

PRICE = Cost(*[None] * len(Cost.__dataclass_fields__))  # no array depends on it


def row(run: str, parent: str | None = None, nodes: int = 1) -> Row:
    config = RunConfig(run=run, parent=parent, resources=ResourcesConfig(nodes=nodes, gpus_per_node=2))
    return Row(config, run, PRICE, "planned", 0 if parent is None else 1)


def names(array: Array) -> dict[int, str]:
    return {task: row.config.run for task, row in array.rows.items()}


def test_runs_of_equal_shape_share_an_array_up_to_its_size() -> None:
    arrays = arrange([row(f"r{number}", nodes=1 + (number == 2)) for number in range(6)], {}, Site(), 3)
    assert [names(array) for array in arrays] == [{0: "r0", 1: "r1", 2: "r3"}, {0: "r2"}, {0: "r4", 1: "r5"}]
    assert [array.shape.nodes for array in arrays] == [1, 2, 1]


def test_two_thousand_runs_take_as_few_arrays_as_the_limit_allows() -> None:
    assert [len(array.rows) for array in arrange([row(f"r{n}") for n in range(2000)], {}, Site(), 1001)] == [1001, 999]


def test_children_take_their_parents_number_and_siblings_another_array() -> None:
    parents = Batch(Path("batch-0001"), {0: "p0", 1: "p1", 2: "p2"})
    placed = {run: (parents, task) for task, run in parents.runs.items()}
    rows = [row("c0", "p0"), row("d0", "p0"), row("c2", "p2"), row("e", "completed")]
    arrays = arrange(rows, placed, Site(), 1001)
    assert [names(array) for array in arrays] == [{0: "c0", 2: "c2"}, {0: "d0"}, {0: "e"}]
    assert [array.parent for array in arrays] == [parents, parents, None]


def test_a_run_alive_in_a_job_of_the_users_own_is_left_alone_and_its_child_waits(tmp_path: Path, shards: Path) -> None:
    """What it was submitted in before has ended, so there is no job of ours to wait for."""
    plan = plan_study(load_study(write_study(tmp_path, shards)), tmp_path)
    write_folders(plan, tmp_path)
    first, *others = (row.config.run for row in plan.rows if row.level == 0)
    ended = Batch(next(next_batches(tmp_path / plan.study.name)), {0: first})
    write_batch(ended, "#!/bin/bash\n")
    (ended.folder / JOB).write_text("7\n")
    standings = {row.config.run: Standing("planned") for row in plan.rows} | {first: Standing("running", "123")}
    arrays = prepare(plan, tmp_path, Site(), standings, size=1001)
    submitted = {run for array in arrays for run in names(array).values()}
    assert submitted == {*others, *(row.config.run for row in plan.rows if row.config.parent in others)}


def test_without_slurm_a_study_is_emitted_again_and_cancelled(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(write_study(tmp_path, shards))
    monkeypatch.setenv("PATH", "")
    plan = plan_study(study, tmp_path)
    for folder in ("one", "two"):
        assert emit(plan, tmp_path, Site(), tmp_path / folder)
    assert sorted(cancel(plan, tmp_path)) == sorted(row.config.run for row in plan.rows)
    assert {row.state for row in plan_study(study, tmp_path).rows} == {"cancelled"}


def test_what_was_emitted_and_not_submitted_is_overtaken(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both submitted, every run would be trained twice."""
    plan = plan_study(load_study(write_study(tmp_path, shards)), tmp_path)
    monkeypatch.setenv("PATH", "")
    for folder in ("one", "two"):
        emit(plan, tmp_path, Site(), tmp_path / folder)
    batches = read_batches(tmp_path / plan.study.name)
    assert sorted(run for batch in batches for run in batch.runs.values()) == sorted(
        row.config.run for row in plan.rows
    )
    ended = subprocess.run([tmp_path / "one" / "submit.sh"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "a later launch has taken over these runs" in ended.stderr


def test_emitting_what_is_left_of_a_study_says_when_nothing_is(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path, shards)
    monkeypatch.setenv("PATH", "")
    plan = plan_study(load_study(study), tmp_path)
    write_folders(plan, tmp_path)
    command = ["launch", str(study), "--root", str(tmp_path), "--emit", str(tmp_path / "jobs")]
    assert "submits them in order" in CliRunner().invoke(app, command).output
    cancel(plan, tmp_path)
    result = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "again")])
    assert (result.exit_code, result.output) == (0, "no run is left to submit: see `armscale study status`\n")


def options(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]
    pairs = [line.partition("=") for line in lines]
    return {name: shlex.split(value)[0] if value else "" for name, _, value in pairs}


def test_a_script_says_what_the_runs_and_the_site_want(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(
        yaml.safe_dump(
            {
                "partition": "low",
                "account": "lab",
                "time": "02:00:00",
                "exclude": ["n3"],
                "modules": ["cuda"],
                "setup": ["ulimit -n 4096"],
                "container": "apptainer exec --nv arm.sif",
                "python": "python3",
            }
        )
    )
    site = read_site(tmp_path / "site.yaml")
    batch = Batch(tmp_path / "my study" / "slurm" / "batch-0007", {0: "a", 1: "b", 2: "c", 5: "d"})
    text = script(batch, Shape(2, 4, 90), site, limit=3, parent="41", directory=tmp_path)
    found = options(text)
    wanted = {
        "array": "0-2,5%3", "nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4", "time": "90",
        "partition": "low", "account": "lab", "dependency": "aftercorr:41", "requeue": "", "signal": "B:USR2@120",
        "exclude": "n3",
        "chdir": str(tmp_path), "output": str(batch.folder / "%a.log"),
    }  # fmt: skip
    assert {name: found.get(name) for name in wanted} == wanted
    assert not {"qos", "constraint", "mem"} & found.keys()
    body = text.split("\n\n")[1].splitlines()
    assert body[0].startswith("trap '' USR2")
    assert body[1:4] == ["module load cuda", "ulimit -n 4096", "export PYTHONSAFEPATH=1"]
    command = shlex.split(text.split("\nexec ", 1)[1].replace("\\\n", ""))
    assert command[1:4] == ["-m", "slurm.job", str(batch.folder)]
    rank = ["apptainer", "exec", "--nv", "arm.sif", "python3", "-m", "scaling.cli", "run"]
    assert command[command.index("rank") + 1 :] == rank
    assert "--kill-on-bad-exit=1" in command and "--export=ALL" in command


def test_a_users_own_defaults_do_not_undo_a_script(tmp_path: Path) -> None:
    """What the site's file does not say is left to them."""
    batch = Batch(tmp_path / "batch-0001", {0: "a"})
    text = script(batch, Shape(1, 1, 5), Site(partition="gpu"), limit=None, parent=None, directory=tmp_path)
    wanted = {"PARTITION", "TIMELIMIT", "JOB_NAME", "ARRAY_INX", "OUTPUT", "SIGNAL", "NO_REQUEUE", "GPUS_PER_NODE"}
    found = {name.removeprefix("SBATCH_") for name in overriding(text)}
    assert wanted <= found and not {"ACCOUNT", "QOS", "MEM_PER_NODE", "EXPORT"} & found


def test_what_slurm_would_replace_in_the_path_of_a_log_is_kept(tmp_path: Path) -> None:
    batch = Batch(tmp_path / "100%j" / "batch-0001", {0: "a"})
    found = options(script(batch, Shape(1, 1, 5), Site(), limit=None, parent=None, directory=tmp_path))
    assert found["output"] == f"{tmp_path}/100%%j/batch-0001/%a.log"


def test_without_gpus_limit_and_parent_nothing_is_said_of_them(tmp_path: Path) -> None:
    batch = Batch(tmp_path / "batch-0001", {0: "a"})
    found = options(script(batch, Shape(1, 1, 5), Site(gpus=False), limit=None, parent=None, directory=tmp_path))
    assert found["array"] == "0"
    assert not {"gpus-per-node", "dependency", "kill-on-invalid-dep"} & found.keys()


def test_a_run_longer_than_the_site_allows_is_cut() -> None:
    config = RunConfig(resources=ResourcesConfig(nodes=2, gpus_per_node=8, time="3-00:00:00"))
    assert shape_of(config, Site(time="1-00:00:00")) == Shape(2, 8, 1440)
    assert shape_of(config, Site()) == Shape(2, 8, 3 * 1440)


@pytest.mark.parametrize("given", [{"partitoin": "low"}, {"time": "4h"}, {"cpus_per_rank": 0}])
def test_mistakes_in_the_cluster_file_are_named(tmp_path: Path, given: dict[str, object]) -> None:
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(UserError, match=next(iter(given))):
        read_site(tmp_path / "site.yaml")
