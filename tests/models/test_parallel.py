"""Checkpointing, compilation and sharding change how blocks run, not what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from models.build import build_objective
from models.config import EncoderConfig, ObjectiveConfig
from models.mamba import SelectiveScan
from models.noise import Noise
from models.parallel import blocks_of, parallelize
from models.scan.inputs import ScanInputs
from tests.models.configs import AR, LABELLED, MASKED, encoder, name

COMPILED: list[tuple[EncoderConfig, ObjectiveConfig, bool]] = [
    (encoder(depth=2), AR, True),
    (encoder("vit", depth=2), AR, False),
    (encoder(depth=3, drop_path=0.3, scan_directions=4, class_token=True), LABELLED, False),
    (encoder("vit", depth=3, drop_path=0.3), LABELLED, True),
]
"""The last is whether to checkpoint too."""
CASES: list[tuple[EncoderConfig, ObjectiveConfig]] = [
    (encoder(), AR),
    (encoder("vit"), AR),
    (encoder(scan_directions=4), MASKED),
    (encoder(scan_directions=4, class_token=True, drop_path=0.3), LABELLED),
    (encoder("vit", drop_path=0.3), LABELLED),
]
MASKS = torch.rand(2, 64, generator=torch.Generator().manual_seed(1))
DROPS = torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(2))


def loss_and_gradients(module: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    depth = len(module.get_submodule("module.encoder.blocks"))  # type: ignore[arg-type]
    loss, _ = module(images, torch.tensor([1, 2]), Noise(MASKS, DROPS[:, :depth]))
    loss.backward()
    return loss.detach(), {key: value.grad for key, value in module.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("config", "objective"), CASES, ids=name)
def test_checkpointing_changes_nothing(config: EncoderConfig, objective: ObjectiveConfig) -> None:
    plain = loss_and_gradients(build_objective(config, objective))
    module = parallelize(build_objective(config, objective), checkpointing=True)
    found = loss_and_gradients(module)
    assert torch.equal(found[0], plain[0])
    assert found[1].keys() == plain[1].keys()
    assert all(torch.equal(found[1][key], plain[1][key]) for key in plain[1])


@pytest.mark.parametrize("kind", ["mamba", "vit"])
def test_checkpointing_keeps_fewer_tensors(kind: str) -> None:
    """Bytes saved for the backward pass, counted by hooks: a block's input instead of what is inside."""

    def saved(checkpointing: bool) -> int:
        module = parallelize(build_objective(encoder(kind), AR), checkpointing=checkpointing)
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(torch.randn(2, 3, 32, 32))
        return sum(sizes)

    assert saved(True) < saved(False) / 3


@pytest.mark.slow
@pytest.mark.parametrize(("config", "objective", "checkpointing"), COMPILED, ids=name)
def test_compilation_is_within_tolerance(
    config: EncoderConfig, objective: ObjectiveConfig, checkpointing: bool
) -> None:
    torch.compiler.reset()
    plain = loss_and_gradients(build_objective(config, objective))
    module = parallelize(build_objective(config, objective), checkpointing=checkpointing, compile=True)
    found = loss_and_gradients(module)
    torch.testing.assert_close(found[0], plain[0], rtol=1e-5, atol=1e-6)
    for key, gradient in plain[1].items():
        scale = max(gradient.abs().max().item(), 1e-6)
        torch.testing.assert_close(found[1][key] / scale, gradient / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_blocks_share_their_code() -> None:
    """One graph without breaks serves twelve blocks with as many drop path rates; the recompilation limit is eight.
    The embedding has another."""
    torch.compiler.reset()
    counters.clear()
    config = encoder(depth=12, scan_directions=4, drop_path=0.3)
    module = parallelize(build_objective(config, LABELLED), compile=True)
    with torch.no_grad():
        module(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]), Noise(drop_path=torch.rand(2, 12, 2)))
    assert counters["stats"]["unique_graphs"] == 1 + 1
    assert not counters["graph_break"]


def test_blocks_are_sharded_before_the_whole() -> None:
    calls: list[nn.Module] = []
    module = build_objective(encoder(), AR)
    assert parallelize(module, shard=calls.append) is module
    assert calls == [*blocks_of(module), module]
    assert len(calls) == 6 + 4 + 1


class ScanWatch(TorchDispatchMode):
    """Keeps the arguments of every selective scan."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[ScanInputs] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.armscale.selective_scan.default:
            self.seen.append(ScanInputs(*args[: len(ScanInputs._fields)]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("directions", [1, 4])
def test_scan_parameters_stay_in_fp32_under_autocast(directions: int) -> None:
    """A, D and the time step's bias reach the operator equal to the master weights, to the bit; the rest is bf16."""
    module = build_objective(encoder(scan_directions=directions), LABELLED)
    with torch.autocast("cpu", torch.bfloat16), ScanWatch() as watch:
        module(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]))
    scans = [part for part in module.modules() if isinstance(part, SelectiveScan)]
    assert len(watch.seen) == len(scans) == 6
    for inputs, part in zip(watch.seen, scans, strict=True):
        assert inputs.u.dtype == inputs.delta.dtype == inputs.B.dtype == torch.bfloat16
        assert inputs.D is not None
        assert inputs.delta_bias is not None
        for found, master in (
            (inputs.A, -torch.exp(part.A_log)),
            (inputs.D, part.D),
            (inputs.delta_bias, part.dt_bias),
        ):
            assert found.dtype == torch.float32
            assert torch.equal(found, master)
