"""Layers and weight decay by parameter, listed for the official code's names and compared under ours."""

from __future__ import annotations

import pytest

from models.build import build_on_meta
from models.convert import official_names
from models.groups import decays, layer_of
from tests.models.configs import ALL, AR, LABELLED, encoder, name

FINETUNED = encoder(scan_directions=4, class_token=True, positions="learned")


def test_finetuning_as_the_official_code_groups() -> None:
    """Layer 0: patch_embed, cls_token, pos_embed; layers.i: i + 1; the rest: depth + 1. No decay: 1-D tensors (official
    tensors of each direction are 1-D), pos_embed, cls_token."""
    module = build_on_meta(FINETUNED, LABELLED)
    one_dimensional = ("bias", "D", "D_b", "D_c", "D_c_b")
    seen = set()
    for name_, parameter in module.named_parameters():
        for official in official_names(name_.removeprefix("module."), 4):
            parts = official.split(".")
            first = parts[0]
            layer = 0 if first in ("patch_embed", "cls_token", "pos_embed") else 7
            layer = int(parts[1]) + 1 if first == "layers" else layer
            flat = parts[-1] in one_dimensional or "norm" in official
            assert layer_of(name_, 6) == layer
            assert decays(name_, parameter, "finetune") == (not flat and first not in ("cls_token", "pos_embed"))
            seen.add(official)
    assert {
        "layers.3.mixer.A_c_b_log",
        "layers.0.mixer.D_c_b",
        "layers.5.mixer.dt_proj_b.bias",
        "norm_f.weight",
    } <= seen


def test_pretraining_decays_all_but_vectors() -> None:
    """A_log, convolutions and the query token decay (sheet 2); the names work inside the wrapped module too."""
    module = build_on_meta(encoder(), AR)
    parameters = dict(module.named_parameters())
    for name_, parameter in parameters.items():
        assert decays(name_, parameter, "pretrain") == (parameter.dim() > 1)
    assert decays("module.encoder.blocks.0.mixer.scan.A_log", parameters["module.encoder.blocks.0.mixer.scan.A_log"])
    assert decays("module.decoder.token", parameters["module.decoder.token"])
    assert layer_of("encoder.blocks.4.norm1.bias", 6) == layer_of("module.encoder.blocks.4.norm1.bias", 6) == 5
    assert layer_of("module.decoder.blocks.0.norm_mlp.bias", 6) == 7


@pytest.mark.parametrize(("config", "objective"), ALL, ids=name)
def test_every_layer_has_parameters(config: object, objective: object) -> None:
    module = build_on_meta(config, objective)  # type: ignore[arg-type]
    assert {layer_of(name_, 6) for name_, _ in module.named_parameters()} == set(range(8))
