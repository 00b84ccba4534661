"""The numba backend's vectors, and its cache when several processes start at once or no folder can be written."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="numba is not installed")

from models.scan import selective_scan
from models.scan.numba_vectors import LANES, exp2, jit, load, put, sigmoid, softplus, store, total
from tests.models.scan.cases import cast, run, scan_inputs

ROOT = Path(__file__).resolve().parents[3]
SCAN = """
import torch
from models.scan import selective_scan
torch.manual_seed(0)
u, delta, B, C = (torch.randn(1, 3, n) for n in (4, 4, 2, 2))
out = selective_scan(u, delta, -torch.ones(4, 2), B, C, delta_softplus=True, backend="numba")
print(out.double().sum().item())
"""


@jit
def _apply(count, x, powers, logs, slopes, sums):  # type: ignore[no-untyped-def]
    for i in range(0, count, LANES):
        value = load(x, i)
        store(powers, i, exp2(value))
        store(logs, i, softplus(value))
        store(slopes, i, sigmoid(value))
        put(sums, i // LANES, total(value))


@pytest.mark.parametrize("reach", [1.0, 20.0, 120.0])
def test_elementary_functions_keep_relative_precision(reach: float) -> None:
    x = np.linspace(-reach, reach, 1 << 14, dtype=np.float32)
    powers, logs, slopes = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    sums = np.empty(x.size // LANES, np.float32)
    _apply(x.size, *(array.ctypes.data for array in (x, powers, logs, slopes, sums)))
    exact = x.astype(np.float64)
    normal = np.abs(exact) < 80  # beyond, float32 leaves its normal range
    rounding = 4e-7 + 4e-8 * reach  # the argument of the exponential is itself rounded
    np.testing.assert_allclose(powers, np.exp2(exact), rtol=3e-7)
    np.testing.assert_allclose(logs[normal], np.logaddexp(0, exact)[normal], rtol=rounding)
    np.testing.assert_allclose(slopes[normal], (1 / (1 + np.exp(-exact)))[normal], rtol=rounding)
    np.testing.assert_allclose(sums, exact.reshape(-1, LANES).sum(1), rtol=0, atol=1e-5 * reach)
    assert powers[np.abs(x) < 1e-9].tolist() == [1.0] * int((np.abs(x) < 1e-9).sum())


def start(cache: str) -> subprocess.Popen[str]:
    environment = os.environ | {"NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCAN], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_processes_that_fill_one_cache_at_once(tmp_path: Path) -> None:
    processes = [start(str(tmp_path)) for _ in range(3)]
    results = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, results[0][1]
    assert len({out for out, _ in results}) == 1
    assert list(tmp_path.rglob("*.nbi"))


@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Files stand where the folders of the cache should be, which stops root too: every process compiles for itself."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "scaling").mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "scaling" / name, tmp_path / "scaling" / name)
    blocked = tmp_path / "models" / "scan" / "__pycache__"
    blocked.touch()
    environment = os.environ | {"HOME": str(blocked), "XDG_CACHE_HOME": str(blocked), "PYTHONPATH": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    result = subprocess.run(
        [sys.executable, "-c", SCAN], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    assert math.isfinite(float(result.stdout))
    assert blocked.is_file()
    assert not list(tmp_path.rglob("*.nbi"))


def test_two_threads_may_scan_at_once() -> None:
    inputs = cast(scan_inputs(4, 20, 64), torch.float32)
    dout = torch.ones(inputs.u.shape)
    expected, gradients = run(inputs, "numba", dout)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run(inputs, "numba", dout), range(6)))
    for out, found in results:
        assert torch.equal(out, expected)
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True) if a is not None and b is not None)


def test_auto_is_numba_where_it_is_installed() -> None:
    inputs = cast(scan_inputs(2, 9, 32), torch.float32)
    assert torch.equal(selective_scan(*inputs[:8], True), selective_scan(*inputs[:8], True, "numba"))
