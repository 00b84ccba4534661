"""The shipped notebooks run from top to bottom on collected tables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import analysis
from analysis.collect import update_tables
from tests.analysis.folders import write_study

nbformat = pytest.importorskip("nbformat", reason="the extra notebooks is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra notebooks is not installed")
NOTEBOOKS = Path(analysis.__file__).parent / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaling_laws", "throughput"])
def test_the_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update_tables(write_study(tmp_path, sizes=("pico", "nano", "micro", "tiny"), seeds=(0, 1)), tmp_path / "tables")
    root = NOTEBOOKS.parents[1]
    monkeypatch.setenv("ARMSCALE_TABLES", str(tmp_path / "tables"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "shipped without outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    kinds = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml"}
