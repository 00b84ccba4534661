"""From one stage to the next: what is copied, resized, left alone and refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from models.build import build_objective
from models.config import EncoderConfig, SupervisedConfig
from models.tables import resize_positions, sincos_positions
from models.transfer import transfer
from scaling.errors import UserError
from tests.models.configs import AR, LABELLED, MASKED, encoder

FINETUNED = encoder(scan_directions=4, class_token=True, positions="learned")
POSITIONS = "encoder.embedding.pos_embed"


def state_of(config: EncoderConfig, objective: object, seed: int = 3) -> dict[str, Tensor]:
    return build_objective(config, objective, seed=seed).get_submodule("module").state_dict()  # type: ignore[arg-type]


def classifier(config: EncoderConfig, **fields: object) -> nn.Module:
    objective = dataclasses.replace(LABELLED, **fields)  # type: ignore[arg-type]
    return build_objective(config, objective, seed=4).get_submodule("module")


def cubic(grid: Tensor, side: int) -> Tensor:
    """Bicubic resize of a square by definition: Keys' kernel with a = -0.75, half-pixel centres, edges repeated."""
    source = grid.shape[0]
    weights = torch.zeros(side, source, dtype=torch.float64)
    for target in range(side):
        at = (target + 0.5) * source / side - 0.5
        for tap in range(int(at // 1) - 1, int(at // 1) + 3):
            t = abs(at - tap)
            near = 1.25 * t**3 - 2.25 * t**2 + 1
            far = -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3
            weights[target, min(max(tap, 0), source - 1)] += near if t <= 1 else far
    return weights @ grid.double() @ weights.T


@pytest.mark.parametrize("objective", [AR, MASKED], ids=["ar", "mae"])
def test_one_direction_becomes_four(objective: object) -> None:
    source, module = state_of(encoder(), objective), classifier(FINETUNED)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    names = transfer(source, module)
    state = module.state_dict()
    copied = [name for name in names if name != POSITIONS]
    for name in copied:
        for part in state[name].chunk(state[name].shape[0] // source[name].shape[0]):
            assert torch.equal(part, source[name])
    untouched = {"encoder.embedding.cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert set(start) - set(names) == untouched
    assert all(torch.equal(state[name], start[name]) for name in untouched)
    expected = torch.cat([source[POSITIONS][:, :32], torch.zeros(1, 1, 32), source[POSITIONS][:, 32:]], dim=1)
    assert torch.equal(state[POSITIONS], expected)


def test_objective_names_work_on_both_sides() -> None:
    source = build_objective(encoder(), AR, seed=3)
    target = build_objective(FINETUNED, LABELLED)
    assert POSITIONS in transfer(source.state_dict(), target)
    weight = "module.encoder.blocks.5.mixer.in_proj.weight"
    assert torch.equal(target.state_dict()[weight], source.state_dict()[weight])


def test_positions_are_resized_bicubically() -> None:
    table = torch.randn(1, 144, 8, generator=torch.Generator().manual_seed(0))
    resized = resize_positions(table, 14, class_token=False)
    for channel in range(8):
        expected = cubic(table[0, :, channel].view(12, 12), 14)
        torch.testing.assert_close(resized[0, :, channel].view(14, 14).double(), expected, rtol=1e-4, atol=1e-5)
    with_token = resize_positions(table, 14, class_token=True)
    assert with_token.shape == (1, 197, 8)
    assert (with_token[:, 98] == 0).all()
    assert torch.equal(torch.cat([with_token[:, :98], with_token[:, 99:]], 1), resized)


def test_smooth_positions_keep_their_meaning() -> None:
    """Resizing the sin-cos table of one grid gives nearly that of another, sampled at the same places of the image."""
    resized = resize_positions(sincos_positions(16, 12), 24, class_token=False)
    places = (torch.arange(24) + 0.5) / 2 - 0.5
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    for channel in range(16):
        grid = sincos_positions(16, 12)[0, :, channel].view(12, 12).numpy()
        smooth = map_coordinates(grid, [rows.numpy(), columns.numpy()], order=3, mode="nearest")
        assert abs(resized[0, :, channel].view(24, 24).numpy() - smooth).max() < 0.08


def test_finetuned_checkpoint_to_a_larger_grid() -> None:
    """What the official code cannot: class token, its position and norm stay, patches are resized, the head is new."""
    source = state_of(FINETUNED, LABELLED)
    source["norm.weight"] += 1
    module = classifier(dataclasses.replace(FINETUNED, image_size=48), classes=7)
    head = module.get_parameter("head.weight").clone()
    transfer(source, module)
    state = module.state_dict()
    assert torch.equal(state["norm.weight"], source["norm.weight"])
    assert torch.equal(state["encoder.embedding.cls_token"], source["encoder.embedding.cls_token"])
    assert torch.equal(state[POSITIONS][:, 72], source[POSITIONS][:, 32])
    patches = torch.cat([source[POSITIONS][:, :32], source[POSITIONS][:, 33:]], 1)
    resized = resize_positions(patches, 12, class_token=False)
    assert torch.equal(torch.cat([state[POSITIONS][:, :72], state[POSITIONS][:, 73:]], 1), resized)
    assert torch.equal(state["head.weight"], head)


def test_a_further_finetuning_keeps_the_head_of_the_same_classes() -> None:
    source = state_of(FINETUNED, LABELLED)
    module = classifier(dataclasses.replace(FINETUNED, image_size=48))
    assert {"head.weight", "head.bias"} <= set(transfer(source, module, head=True))
    assert torch.equal(module.get_parameter("head.weight"), source["head.weight"])
    assert "head.weight" not in transfer(state_of(encoder(), AR), classifier(FINETUNED), head=True)


def test_finetuned_checkpoint_on_its_own_grid_is_the_same_encoder() -> None:
    source = build_objective(FINETUNED, LABELLED, seed=3).get_submodule("module")
    module = classifier(FINETUNED)
    transfer(source.state_dict(), module)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(module.features(images), source.features(images))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (encoder(width=64), r"of shape \(1, 64, 64\).*shape \(1, 65, 32\)"),
        (encoder(depth=4), r"no encoder\.blocks\.4\."),
        (encoder(depth=8), r"encoder\.blocks\.6\..*same kind and depth"),
        (encoder("vit"), "same kind and depth"),
    ],
)
def test_other_encoders_are_refused_untouched(source: EncoderConfig, message: str) -> None:
    module = classifier(FINETUNED)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UserError, match=message):
        transfer(state_of(source, SupervisedConfig(classes=10)), module)
    assert all(torch.equal(tensor, start[name]) for name, tensor in module.state_dict().items())


def test_four_directions_do_not_become_one() -> None:
    with pytest.raises(UserError, match="shape"):
        transfer(state_of(FINETUNED, LABELLED), classifier(encoder(class_token=True, positions="learned")))
