"""The shipped notebooks run from top to bottom on collected tables."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis.benches import efficiencies, read_benches, steps
from analysis.collect import update_tables
from analysis.tables import read_tables
from tests.analysis.folders import write_study

nbformat = pytest.importorskip("nbformat", reason="the extra notebooks is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra notebooks is not installed")
NOTEBOOKS = Path(analysis.__file__).parent / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "made"), [("scaling_laws", False), ("scaling_laws", True), ("throughput", False)])
def test_the_notebook_runs(name: str, made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tables that are shipped with it; that of the laws on a study with several lengths of training, too."""
    monkeypatch.delenv("ARMSCALE_TABLES", raising=False)
    if made:
        sizes = ("pico", "nano", "micro", "tiny", "small")
        update_tables(write_study(tmp_path, sizes=sizes, lengths=(1, 4, 16)), tmp_path / "tables")
        monkeypatch.setenv("ARMSCALE_TABLES", str(tmp_path / "tables"))
    root = NOTEBOOKS.parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "shipped without outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert {kind for output in outputs for kind in output.get("data", {})} & {"image/png", "image/svg+xml"}
    told = "".join(output.get("text", "") for output in outputs)
    if name == "scaling_laws":
        assert ("Budget 1 GPU-hours" in told) == made
        assert "floor" in told


def test_the_largest_size_that_scores_the_laws_is_each_arms_own(capsys: pytest.CaptureFixture[str]) -> None:
    """At 64 px every size has a few parameters more, so that the largest of all is of one arm alone."""
    notebook = nbformat.read(NOTEBOOKS / "scaling_laws.ipynb", as_version=4)
    (cell,) = [cell["source"] for cell in notebook.cells if "import choose_form" in cell["source"]]
    sizes = pd.Series([1e5, 2e5, 4e5, 8e5])
    arms = {"ar, 32 px": sizes, "ar, 64 px": 1.01 * sizes}
    parts = [pd.DataFrame({"label": label, "parameters": n, "top1_error": 9 * n**-0.3}) for label, n in arms.items()]
    exec(cell, {"runs": pd.concat(parts)})
    scored = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["power"]]
    assert [float(row[1]) for row in scored] == [3, 3]
    assert [float(row[2]) for row in scored] == pytest.approx([0, 0], abs=1e-3)


def test_the_shipped_tables_are_whole_and_name_no_place_of_their_machine() -> None:
    tables = read_tables(NOTEBOOKS / "tables")
    assert len(tables.completed) == 18
    assert set(tables.completed["strategy"]) == {"ar", "mae", "supervised", "scratch"}
    assert not tables.sources["folder"].str.startswith("/").any()


def test_the_shipped_benches_agree_with_themselves() -> None:
    """A batch over the time of a step is its rate, and the compiled step is the fastest of its case."""
    reports = read_benches(sorted((NOTEBOOKS / "benches").glob("*.json")))
    table = steps(reports)
    assert len(table) == 16
    assert (table["micro_batch"] / table["step_seconds"]).to_numpy() == pytest.approx(
        table["images_per_second"], rel=1e-6
    )
    for _, case in table.groupby(["size", "stage"]):
        assert case.loc[case["images_per_second"].idxmax(), "name"] == "triton compiled"
    assert set(efficiencies(reports)["devices"]) == {1, 2}
