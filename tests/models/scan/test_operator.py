"""What the operators promise to the rest of PyTorch, and how a backend is chosen."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from models.scan import available_backends, causal_conv1d, selective_scan, torch_scan
from models.scan.backends import load
from models.scan.inputs import ScanInputs
from scaling.errors import UserError
from tests.models.scan.cases import cast, parameters, scan_inputs

BACKENDS = parameters("selective_scan", "torch", "numba")


def small(**options: Any) -> ScanInputs:
    return cast(scan_inputs(2, 6, 20, groups=2, state=4, **options), torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_scan_is_a_sound_operator(backend: str, optional: bool, ordered: bool) -> None:
    """PyTorch's own check: schema, shapes and strides on fake tensors, gradient registration, tracing."""
    inputs = small(optional=optional, ordered=ordered)
    fields = [x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    opcheck(torch.ops.armscale.selective_scan.default, (*fields, True, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_have_the_strides_that_the_fake_gives(backend: str) -> None:
    """Compiled code asserts them."""
    given = (*cast(scan_inputs(2, 6, 20, state=4), torch.float32), torch.ones(2, 6, 20))
    *inputs, dout = given
    _, *kept = torch.ops.armscale.selective_scan(*inputs, True, backend)
    gradients = torch.ops.armscale.selective_scan_backward(*inputs, *kept, dout, backend)
    assert [gradient.is_contiguous() for gradient in gradients] == [True] * len(gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_is_a_sound_operator(backend: str, groups: int) -> None:
    x, weight = torch.randn(2, 6, 5, requires_grad=True), torch.randn(5 * groups, 4, requires_grad=True)
    order = torch.stack([torch.randperm(6), torch.arange(6)])[:groups]
    opcheck(torch.ops.armscale.causal_conv1d.default, (x, weight, None, True, order, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend: str) -> None:
    inputs = small()
    weight = torch.randn(20, 4)

    def block(u: Tensor, *rest: Tensor) -> Tensor:
        x = causal_conv1d(u * 2, weight, None, "silu", backend)
        return selective_scan(x, *rest, True, backend) + 1

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    leaves = [x.detach().requires_grad_() for x in inputs[:8] if x is not None]
    out, expected = compiled(*leaves), block(*leaves)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    gradients = torch.autograd.grad(out.sum(), leaves)
    for actual, wanted in zip(gradients, torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_activation_checkpointing_changes_nothing(backend: str) -> None:
    inputs = small()
    leaves = [x.detach().requires_grad_() for x in inputs[:8] if x is not None]

    def scan(*values: Tensor) -> Tensor:
        return selective_scan(*values, True, backend)

    plain = torch.autograd.grad(scan(*leaves).sum(), leaves)
    again = torch.autograd.grad(checkpoint(scan, *leaves, use_reentrant=False).sum(), leaves)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


def test_autocast_leaves_the_state_in_float32() -> None:
    """Under bfloat16 autocast A, D and the bias reach the operator as they are."""
    inputs = cast(scan_inputs(1, 8, 16), torch.float32, tokens=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = selective_scan(*inputs[:8], True)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, selective_scan(*inputs[:8], True), rtol=0, atol=0)


def test_meta_tensors_give_shapes() -> None:
    inputs = ScanInputs(*(x.to("meta") if isinstance(x, Tensor) else x for x in small()))
    out = selective_scan(*inputs[:8], True)
    assert out.device.type == "meta"
    assert out.shape == inputs.u.shape


class ZeroWatch(TorchDispatchMode):
    """The sizes of the tensors of zeros that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "zeros" in func.name():
            self.sizes.append(out.numel())
        return out


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_kept_gets_no_gradient_of_zeros(backend: str) -> None:
    inputs = cast(scan_inputs(2, 30, 20), torch.float32)
    leaves = [x.requires_grad_() for x in inputs[:8] if isinstance(x, Tensor)]
    out = selective_scan(*leaves, True, backend)
    with ZeroWatch() as watch:
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    states = load("selective_scan", backend).kept_shapes(inputs)[0]
    assert math.prod(states) not in watch.sizes


@pytest.mark.parametrize("backend", BACKENDS)
def test_keeps_no_states_without_gradients(backend: str) -> None:
    kept = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            fields = small()
            fields = fields._replace(u=fields.u.requires_grad_())
            keep = torch.is_grad_enabled()
            kept.append(torch.ops.armscale.selective_scan(*fields, keep, backend)[1].numel())
    assert kept[0] > 0
    assert kept[1] == 0


class LiveStates(TorchDispatchMode):
    """The greatest number of elements alive at once in tensors of whole states, those whose size divides by `unit`."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.unit, self.live, self.peak = unit, 0, 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage(), tensor.element_size())
        return out

    def count(self, storage: Any, element: int) -> None:
        size, key = storage.nbytes() // element, storage._cdata
        if size == 0 or size % self.unit or key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.release, key, size)

    def release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def test_memory_of_states_grows_as_the_root_of_the_length() -> None:
    """Four times the tokens need twice the states, kept and recomputed together."""
    state, channels = 13, 37
    peaks = []
    for length in (128, 512, 2048):
        inputs = cast(scan_inputs(1, length, channels, state=state), torch.float32)
        dout = torch.ones(inputs.u.shape)
        with torch.no_grad(), LiveStates(state * channels) as mode:
            _, *kept = torch_scan.forward(inputs, keep=True)
            torch_scan.backward(inputs, *kept, dout)
        peaks.append(mode.peak / (state * channels))
    assert 3 * 128**0.5 <= peaks[0] <= 5 * 128**0.5
    assert 1.6 <= peaks[1] / peaks[0] <= 2.1
    assert 1.6 <= peaks[2] / peaks[1] <= 2.1


def test_auto_takes_what_fits() -> None:
    """float64 goes to torch whatever is installed; the definition is never chosen."""
    inputs = scan_inputs(1, 4, 16)
    exact = selective_scan(*inputs[:8], True)
    assert torch.equal(exact, selective_scan(*inputs[:8], True, "torch"))
    names = [row.name for row in available_backends()]
    assert names.index("numba") < names.index("torch") < names.index("reference")
    assert all(row.reason and "\n" not in row.reason for row in available_backends())


def test_a_broken_package_is_one_line_and_auto_goes_on(tmp_path: Path) -> None:
    """A real package that fails when it is imported, in a process of its own."""
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise RuntimeError('built for another Python\\nsecond line')")
    script = (
        "import torch; from models.scan import available_backends, selective_scan\n"
        "rows = {row.name: row for row in available_backends()}\n"
        "x, m = torch.ones(1, 2, 4), torch.ones(1, 2, 3)\n"
        "out = selective_scan(x, x, -torch.ones(4, 3), m, m)\n"
        "print(rows['numba'].usable, rows['numba'].reason, tuple(out.shape), sep='|')\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[3])])
    result = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    reason = "numba is installed but does not import: RuntimeError: built for another Python"
    assert result.stdout.strip() == f"False|{reason}|(1, 2, 4)"


@pytest.mark.parametrize(("backend", "dtype"), [("nope", torch.float32), ("numba", torch.float64)])
def test_a_backend_that_cannot_be_had_is_named(backend: str, dtype: torch.dtype) -> None:
    inputs = cast(scan_inputs(1, 4, 16), dtype)
    with pytest.raises(UserError, match=f"backend: '{backend}'.*Valid: auto, .*torch"):
        selective_scan(*inputs[:8], True, backend)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("delta", (2, 6, 19)), ("A", (20, 5)), ("C", (2, 6, 1, 4)), ("D", (19,)), ("z", (2, 5, 20)), ("order", (2, 5))],
)
def test_a_shape_that_does_not_fit_is_named(name: str, shape: tuple[int, ...]) -> None:
    dtype = torch.int64 if name == "order" else torch.float32
    inputs = small()._replace(**{name: torch.zeros(shape, dtype=dtype)})
    wrong = "delta_bias|delta|A|B|C|D|z|order"
    with pytest.raises(ValueError, match=f"({wrong}) has shape"):
        selective_scan(*inputs[:9], "auto", inputs.order)


def test_channels_that_do_not_split_over_groups() -> None:
    inputs = small()
    with pytest.raises(ValueError, match="20 channels do not split over 3 groups"):
        selective_scan(*inputs[:3], torch.zeros(2, 6, 3, 4), torch.zeros(2, 6, 3, 4))
