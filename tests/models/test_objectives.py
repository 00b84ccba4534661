"""What objectives take, return and refuse; which pixels and which noise matter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.arm import ARM
from models.build import build_objective
from models.classifier import Classifier
from models.config import ENCODERS, EncoderConfig, ObjectiveConfig
from models.mae import MAE
from models.noise import Noise, drop_path_rates
from models.orders import cluster_order
from models.pixels import patchify, targets_of
from scaling.errors import UserError
from tests.models.configs import ALL, AR, LABELLED, MASKED, encoder, name

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 9, 3])
MASKS = torch.rand(4, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("config", "objective"), ALL, ids=name)
def test_one_signature(config: EncoderConfig, objective: ObjectiveConfig) -> None:
    module = build_objective(config, objective)
    loss, metrics = module(IMAGES, LABELS, Noise(mask=MASKS))
    assert loss.shape == ()
    assert all(not value.requires_grad and value.shape == () for value in metrics.values())
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(("config", "objective"), ALL, ids=name)
def test_other_image_shapes_are_refused(config: EncoderConfig, objective: ObjectiveConfig) -> None:
    module = build_objective(config, objective)
    for shape in ((4, 3, 28, 28), (4, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(UserError, match=r"images: .* is not valid.* Valid: the shape"):
            module(torch.zeros(shape), LABELS, Noise(mask=torch.rand(shape[0], 64)))


def test_patches_and_targets_by_definition() -> None:
    patches = patchify(IMAGES, 4)
    assert patches.shape == (4, 64, 48)
    window = IMAGES[2, :, 8:12, 20:24]  # row 2, column 5 of the grid
    expected = torch.stack([window[c, y, x] for y in range(4) for x in range(4) for c in range(3)])
    assert torch.equal(patches[2, 2 * 8 + 5], expected)
    normalised = targets_of(IMAGES, 4, "normalized")[2, 2 * 8 + 5]
    mean = expected.sum() / 48
    variance = ((expected - mean) ** 2).sum() / 47
    torch.testing.assert_close(normalised, (expected - mean) / (variance + 1e-6).sqrt())
    assert torch.equal(targets_of(IMAGES, 4, "raw"), patches)
    assert normalised.square().mean().item() == pytest.approx(47 / 48, rel=1e-4)


def test_cluster_orders_by_hand() -> None:
    """A 4 x 4 grid in clusters of 2 x 2."""
    assert cluster_order(4, 2, "row", 0).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert cluster_order(4, 2, "column", 0).tolist() == [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15]
    first, again, other = (cluster_order(8, 2, "random", seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert sorted(first.tolist()) == list(range(64))
    assert sorted(first[:4].tolist()) in cluster_order(8, 2, "row", 0).view(-1, 4).tolist()


@pytest.mark.parametrize("target", ["normalized", "raw"])
def test_autoregressive_loss_by_position(target: str) -> None:
    """Positions are the patches of clusters 1 and on, each compared with its own pixels."""
    objective = build_objective(encoder(), dataclasses.replace(AR, target=target, order="random"))
    module = objective.get_submodule("module")
    assert isinstance(module, ARM)
    found = module(IMAGES)
    assert found.prediction.shape == (4, 60, 48)
    sequence = cluster_order(8, 2, "random", 0)
    goal = torch.stack([targets_of(IMAGES, 4, target)[:, patch] for patch in sequence[4:].tolist()], dim=1)
    expected = ((found.prediction - goal) ** 2).mean(dim=(0, 2))
    torch.testing.assert_close(found.loss_per_position, expected)
    torch.testing.assert_close(found.loss, expected.mean())
    torch.testing.assert_close(objective(IMAGES)[0], expected.mean())


def mae(kind: str, directions: int = 1) -> MAE:
    module = build_objective(encoder(kind, scan_directions=directions), MASKED).get_submodule("module")
    assert isinstance(module, MAE)
    return module


@pytest.mark.parametrize(("kind", "directions"), [("mamba", 1), ("mamba", 4), ("vit", 1)])
def test_masked_pixels_are_not_seen(kind: str, directions: int) -> None:
    module = mae(kind, directions)
    noise = Noise(mask=MASKS)
    visible = module.visible(noise, 4)
    assert visible.shape == (4, 16)
    for sample in range(4):
        assert set(visible[sample].tolist()) == set(torch.argsort(MASKS[sample])[:16].tolist())
        assert visible[sample].tolist() == sorted(visible[sample].tolist())
    hidden = torch.ones(4, 64, dtype=torch.bool).scatter(1, visible, False)
    with torch.no_grad():
        before = module(IMAGES, noise)
        pixels = hidden.view(4, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
        after = module(torch.where(pixels, torch.randn_like(IMAGES), IMAGES), noise)
    assert torch.equal(before.prediction, after.prediction)
    assert before.loss != after.loss


def test_masked_loss_counts_masked_patches_alone() -> None:
    module = mae("mamba")
    noise = Noise(mask=MASKS)
    found = module(IMAGES, noise)
    hidden = torch.ones(4, 64).scatter(1, module.visible(noise, 4), 0.0)
    errors = ((found.prediction - targets_of(IMAGES, 4, "normalized")) ** 2).mean(2)
    torch.testing.assert_close(found.loss, errors[hidden == 1].mean())
    position = int(hidden.sum(0).argmax())
    expected = errors[:, position][hidden[:, position] == 1].mean()
    torch.testing.assert_close(found.loss_per_position[position], expected)


def test_masked_order_of_samples_does_not_matter() -> None:
    """Four directions have a column order for each sample."""
    module = mae("mamba", 4)
    with torch.no_grad():
        together = module(IMAGES, Noise(mask=MASKS)).prediction
        alone = module(IMAGES[2:3], Noise(mask=MASKS[2:3])).prediction
    torch.testing.assert_close(together[2:3], alone, rtol=1e-5, atol=1e-6)


def test_missing_noise_is_named() -> None:
    with pytest.raises(UserError, match=r"noise\.mask: None"):
        build_objective(encoder(), MASKED)(IMAGES)
    objective = build_objective(encoder(drop_path=0.1), LABELLED)
    with pytest.raises(UserError, match=r"noise\.drop_path: None.*drop path is on.*\(4, 6, 2\)"):
        objective(IMAGES, LABELS)
    with pytest.raises(UserError, match=r"noise\.drop_path: \(4, 5, 2\)"):
        objective(IMAGES, LABELS, Noise(drop_path=torch.rand(4, 5, 2)))
    objective.eval()
    objective(IMAGES, LABELS)


def test_drop_path_rates_of_the_sheet() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0, 0.1, 0.2])
    assert drop_path_rates(0.3, 1) == [0]


@pytest.mark.parametrize("kind", ENCODERS)
def test_drop_path_removes_branches_and_rescales(kind: str) -> None:
    """Uniforms of 0 drop every branch that has a rate; the others are divided by what remains."""
    module = build_objective(encoder(kind, drop_path=0.5), LABELLED).get_submodule("module")
    assert isinstance(module, Classifier)
    tokens = module.encoder.embedding(IMAGES)
    rates = drop_path_rates(0.5, 6)
    uniforms = torch.ones(4, 6, 2) - 1e-6
    uniforms[1] = 0.0

    def block(i: int, x: Tensor) -> Tensor:
        part = module.encoder.blocks[i]
        mixer = part.mixer if kind == "mamba" else lambda y: part.attention(y, None)  # type: ignore[operator]
        scale = torch.full((4, 1, 1), 1 / (1 - rates[i]))
        scale[1] = 1.0 if rates[i] == 0 else 0.0
        x = x + scale * mixer(part.norm1(x))  # type: ignore[operator]
        return x + scale * part.mlp(part.norm2(x))  # type: ignore[operator]

    expected = tokens
    for i in range(6):
        expected = block(i, expected)
    (found,) = module.encoder(tokens, noise=Noise(drop_path=uniforms))
    torch.testing.assert_close(found, expected)


def test_classification_losses() -> None:
    objective = build_objective(encoder(class_token=True), LABELLED)
    logits = objective.get_submodule("module")(IMAGES)
    loss, metrics = objective(IMAGES, LABELS)
    expected = -logits.log_softmax(1)[torch.arange(4), LABELS].mean()
    torch.testing.assert_close(loss, expected)
    assert metrics["top1"] == (logits.argmax(1) == LABELS).float().mean()
    soft = torch.rand(4, 10).softmax(1)
    loss, metrics = objective(IMAGES, soft)
    torch.testing.assert_close(loss, -(soft * logits.log_softmax(1)).sum(1).mean())
    assert metrics == {}


@pytest.mark.parametrize("pooling", ["mean", "class_token"])
@pytest.mark.parametrize("side", [7, 8])
def test_pooling(side: int, pooling: str) -> None:
    """The class token stands after half the patches, rounded down, and is no part of the mean."""
    objective = dataclasses.replace(LABELLED, pooling=pooling)
    config = encoder(image_size=4 * side, class_token=True, scan_directions=4)
    module = build_objective(config, objective).get_submodule("module")
    assert isinstance(module, Classifier)
    images = torch.randn(2, 3, 4 * side, 4 * side)
    (tokens,) = module.encoder(module.encoder.embedding(images))
    tokens = F.layer_norm(tokens, (32,))
    middle = side * side // 2
    patches = [i for i in range(side * side + 1) if i != middle]
    expected = tokens[:, middle] if pooling == "class_token" else tokens[:, patches].mean(1)
    torch.testing.assert_close(module.features(images), expected)
    embedded = module.encoder.embedding(images)
    token = module.encoder.embedding.cls_token.expand(2, -1, -1)
    torch.testing.assert_close(embedded[:, middle : middle + 1], token)  # its sin-cos row is zero
