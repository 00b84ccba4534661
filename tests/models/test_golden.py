"""Our modules against numbers that the official code computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.arm import ARM
from models.classifier import Classifier
from models.convert import from_official, to_official
from scaling.errors import UserError

FOLDER = Path(__file__).parents[1] / "golden"
PRETRAIN = FOLDER / "arm_pretrain_w32_d12_192.safetensors"
FINETUNE = FOLDER / "arm_finetune_w32_d2_224.safetensors"


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def state_of(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("state."): tensor for name, tensor in golden.items() if name.startswith("state.")}


def assert_near(ours: Tensor, golden: Tensor) -> None:
    difference = (ours.reshape(golden.shape) - golden).abs().max() / golden.abs().max()
    assert difference < 2e-5


def official_gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients under the official names: they map as the values do."""
    carrier = from_official(to_official(module))
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in carrier.named_parameters():
            gradient = gradients[name]
            assert gradient is not None
            parameter.copy_(gradient)
    return to_official(carrier)


def assert_gradients(module: nn.Module, golden: dict[str, Tensor]) -> None:
    gradients = official_gradients(module)
    checked = [name for name in golden if name.startswith("grad.")]
    assert len(checked) >= 6
    for name in checked:
        assert_near(gradients[name.removeprefix("grad.")], golden[name])


@pytest.mark.parametrize("device", DEVICES)
def test_pretraining_outputs_and_gradients(device: str) -> None:
    golden = load_file(PRETRAIN, device=device)
    module = from_official(state_of(golden))
    assert isinstance(module, ARM)
    found = module(golden["input"])
    assert_near(found.loss, golden["loss"])
    assert_near(found.loss_per_position, golden["loss_per_position"])
    assert_near(found.prediction, golden["prediction"])
    found.loss.backward()
    assert_gradients(module, golden)


def test_interleaved_decoder_input() -> None:
    """Level k is every fourth channel of the projection, not a block of it."""
    golden = load_file(PRETRAIN)
    module = from_official(state_of(golden))
    assert isinstance(module, ARM)
    tokens = module.encoder.embedding(golden["input"]).index_select(1, module.get_buffer("sequence")[:-16])
    levels = module.encoder(tokens, taps=(6, 8, 10, 12))
    for level, memory in enumerate(module.decoder.memories(levels)):
        assert_near(memory, golden["decoder_input"][..., level])


@pytest.mark.parametrize("device", DEVICES)
def test_finetuning_outputs_and_gradients(device: str) -> None:
    golden = load_file(FINETUNE, device=device)
    module = from_official(state_of(golden))
    assert isinstance(module, Classifier)
    assert_near(module.features(golden["input"]), golden["features"])
    logits = module(golden["input"])
    assert_near(logits, golden["logits"])
    F.cross_entropy(logits, torch.tensor([3], device=device)).backward()
    assert_gradients(module, golden)


@pytest.mark.parametrize("path", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_round_trip_is_exact(path: Path) -> None:
    state = state_of(load_file(path))
    back = to_official(from_official(state))
    assert set(back) - {"mask"} == set(state) - {"mask"}
    for name, tensor in state.items():
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)
    again = to_official(from_official(back))
    assert all(torch.equal(again[name], tensor) for name, tensor in back.items())


def test_converted_weights_are_copies() -> None:
    state = state_of(load_file(FINETUNE))
    before = state["head.weight"].clone()
    module = from_official(state)
    with torch.no_grad():
        for tensor in (*module.parameters(), *to_official(module).values()):
            tensor.zero_()
    assert torch.equal(state["head.weight"], before)


def test_mask_is_the_official_additive_one() -> None:
    """128 x 128, zero in and below the diagonal 16 x 16 blocks, minus infinity above (sheet 1.7)."""
    state = state_of(load_file(PRETRAIN))
    mask = to_official(from_official(state))["mask"]
    assert mask.shape == (128, 128)
    for row in (0, 15, 16, 127):
        seen = 16 * (row // 16 + 1)
        assert mask[row, :seen].abs().sum() == 0
        assert torch.isneginf(mask[row, seen:]).all()


@pytest.mark.parametrize("path", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_meta_tensors_give_a_meta_module(path: Path) -> None:
    state = {name: tensor.to("meta") for name, tensor in state_of(load_file(path)).items()}
    module = from_official(state)
    assert all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    assert all(tensor.is_meta for tensor in to_official(module).values())


def test_tensors_that_are_missing_or_foreign_are_named() -> None:
    state = state_of(load_file(FINETUNE))
    with pytest.raises(UserError, match="A_c_b_log"):
        from_official({name: tensor for name, tensor in state.items() if name != "layers.1.mixer.A_c_b_log"})
    with pytest.raises(UserError, match="gamma"):
        from_official(state | {"layers.0.gamma": torch.zeros(32)})
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.w3\.weight"):
        from_official(state | {"layers.0.mlp.w3.weight": torch.zeros(32, 84)})
    mixed = {"layers.0.mlp.w1.weight": torch.zeros(86, 32), "layers.0.mlp.w2.weight": torch.zeros(84, 32)}
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.w1\.weight.*\(85, 32\)"):
        from_official(state | mixed)
    turned = state["layers.0.mixer.in_proj.weight"].T
    with pytest.raises(UserError, match=r"layers\.0\.mixer\.in_proj\.weight"):
        from_official(state | {"layers.0.mixer.in_proj.weight": turned})
    with pytest.raises(UserError, match="ARM pretraining or finetuning"):
        from_official({"weight": torch.zeros(1)})
    for name in ("pos_embed", "patch_embed.proj.weight", "head.weight"):  # from which sizes are read
        with pytest.raises(UserError, match=rf"{name}.*dimensions"):
            from_official(state | {name: state[name].flatten()})
    with pytest.raises(UserError, match=r"norm_f\.weight.*int8"):
        from_official(state | {"norm_f.weight": state["norm_f.weight"].to(torch.int8)})
