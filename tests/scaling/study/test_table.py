"""study.yaml to runs: axes, rules, exclusions, ids."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scaling.config import RunConfig
from scaling.cost import cost
from scaling.errors import UserError
from scaling.reading import dump, load_run
from scaling.study import identity
from scaling.study.chains import runs
from scaling.study.plan import data_facts
from scaling.study.table import PACKAGED, Study, load_study, nested

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"shards": "shards/x"},
    "axes": {"strategy": ["ar", "scratch"], "size": ["pico", "nano"], "seed": [0, 1]},
    "defaults": {
        "model.patch_size": 4,
        "ar.cluster_side": 2,
        "pretrain": {"images": 640, "global_batch": 64, "image_size": 32, "lr": 1e-3},
        "finetune": {"images": 640, "global_batch": 64, "image_size": 32, "lr": 1e-3},
    },
}


def study_of(tmp_path: Path, **changes: Any) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return load_study(path)


def test_stages_stand_under_their_parents(tmp_path: Path) -> None:
    table = runs(study_of(tmp_path), "f")
    assert len(table) == 2 * 2 * 2 + 2 * 2  # ar has two stages
    by_id = {run.run: run for run in table}
    for run in table:
        if run.strategy == "ar" and run.stage == "finetune":
            assert run.parent is not None
            assert by_id[run.parent].stage == "pretrain"
            assert (by_id[run.parent].size, by_id[run.parent].seed) == (run.size, run.seed)
        else:
            assert run.parent is None


def test_finetunings_of_one_pretraining_share_it(tmp_path: Path) -> None:
    table = runs(
        study_of(tmp_path, axes={"strategy": ["ar"], "size": ["pico"], "finetune.lr": [1e-3, 2e-3, 3e-3]}), "f"
    )
    assert [run.stage for run in table].count("pretrain") == 1
    assert len({run.run for run in table}) == len(table) == 4


BRANCHED = SMALL["defaults"] | {
    "pretrain": {"branches": [640, 1280], "schedule": "wsd", "decay": 0.2, "warmup": 0.1}
    | {"global_batch": 64, "image_size": 32, "lr": 1e-3}
}


def test_decays_branch_off_one_trunk(tmp_path: Path) -> None:
    """trunk -> a decay a length -> its own finetuning; another branch later does not rename the trunk."""
    axes = {"strategy": ["ar"], "size": ["pico"]}
    table = runs(study_of(tmp_path, axes=axes, defaults=BRANCHED), "f")
    trunk = table[0]
    assert [(run.stage, run.train.images, run.train.branched_at) for run in table] == [
        ("pretrain", 1280, None),
        ("pretrain", 768, 640), ("finetune", 640, None),
        ("pretrain", 1600, 1280), ("finetune", 640, None),
    ]  # fmt: skip
    assert [run.parent for run in table] == [None, trunk.run, table[1].run, trunk.run, table[3].run]
    assert "-pretrain-at640-s0-" in table[1].run
    assert (trunk.train.branches, trunk.train.decay) == ((640, 1280), 0.0)
    assert cost(table[3], 5000, 10).images == 320
    more = BRANCHED | {"pretrain": BRANCHED["pretrain"] | {"branches": [320, 640, 1280]}}
    assert runs(study_of(tmp_path, axes=axes, defaults=more), "f")[0].run == trunk.run


def test_later_rules_win_and_lists_mean_any(tmp_path: Path) -> None:
    rules = [
        {"when": {"strategy": "ar"}, "set": {"pretrain.lr": 5.0, "engine": "ddp"}},
        {"when": {"size": ["nano", "micro"], "strategy": "ar"}, "set": {"pretrain.lr": 7.0}},
    ]
    table = runs(study_of(tmp_path, rules=rules), "f")
    rates = {(run.strategy, run.size): run.train.lr for run in table if run.stage == "pretrain"}
    assert rates == {("ar", "pico"): 5.0, ("ar", "nano"): 7.0}
    assert {run.engine for run in table if run.strategy == "ar"} == {"ddp"}
    assert {run.engine for run in table if run.strategy == "scratch"} == {"single"}


def test_exclude(tmp_path: Path) -> None:
    table = runs(study_of(tmp_path, exclude=[{"size": "nano", "strategy": "ar"}]), "f")
    assert {(run.strategy, run.size) for run in table} == {("ar", "pico"), ("scratch", "pico"), ("scratch", "nano")}


def test_conditions_on_an_axis_of_lists(tmp_path: Path) -> None:
    """One of its values, or any of several."""
    axes = {"strategy": ["scratch"], "size": ["pico"], "finetune.betas": [[0.9, 0.9], [0.9, 0.95], [0.9, 0.999]]}
    rules = [{"when": {"finetune.betas": [[0.9, 0.9], [0.9, 0.999]]}, "set": {"finetune.lr": 5.0}}]
    table = runs(study_of(tmp_path, axes=axes, rules=rules, exclude=[{"finetune.betas": [0.9, 0.95]}]), "f")
    assert {run.train.betas: run.train.lr for run in table} == {(0.9, 0.9): 5.0, (0.9, 0.999): 5.0}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"axes": {"size": ["gigantic"]}}, ["size", "gigantic", "pico, nano, micro"]),
        ({"axes": {"strategy": ["dino"]}}, ["strategy", "dino", "ar, mae, supervised, scratch"]),
        ({"axes": {"encoder": ["cnn"]}}, ["encoder", "cnn", "mamba, vit"]),
        ({"axes": {"pretrain.learning_rate": [1]}}, ["pretrain.learning_rate", "global_batch"]),
        ({"axes": {"size": []}}, ["axes.size", "at least one"]),
        ({"axis": {}}, ["axis", "axes"]),
        ({"purpose": "fun"}, ["purpose", "fun", "accuracy, throughput"]),
        ({"rules": [{"when": {"colour": "red"}, "set": {}}]}, ["rules[0].when.colour", "strategy"]),
        ({"rules": [{"when": {"size": "pico"}}]}, ["rules[0]", "when and set"]),
        ({"rules": [{"when": {"strategy": "supervise"}, "set": {}}]}, ["rules[0].when.strategy", "'supervise'", "mae"]),
        ({"rules": [{"when": {"size": ["pico", "nana"]}, "set": {}}]}, ["rules[0].when.size", "'nana'", "nano"]),
        ({"exclude": [{"encoder": "vti"}]}, ["exclude[0].encoder", "'vti'", "mamba, vit"]),
        ({"defaults": SMALL["defaults"] | {"pretrain.lr": "fast"}}, ["pretrain.lr", "fast"]),
        (
            {"defaults": SMALL["defaults"] | {"pretrain.image_size": 30}},
            ["pretrain.image_size", "30", "multiple of patch_size = 4"],
        ),
        ({"defaults": SMALL["defaults"] | {"ar.cluster_side": 3}}, ["ar.cluster_side", "3", "1, 2, 4"]),
        ({"defaults": SMALL["defaults"] | {"finetune.images": 10}}, ["finetune.images", "10", "64"]),
        ({"defaults": BRANCHED | {"pretrain.branches": [650]}}, ["pretrain.branches", "650", "multiples"]),
        ({"defaults": BRANCHED | {"pretrain.branches": [64, 1280]}}, ["pretrain.branches", "after the warm-up"]),
        ({"defaults": BRANCHED | {"pretrain.schedule": "cosine"}}, ["pretrain.schedule", "wsd"]),
        ({"defaults": BRANCHED | {"pretrain.ema": 0.1}}, ["pretrain.ema", "0.1"]),
        ({"name": "a/b"}, ["name", "a/b"]),
        ({"rules": [{"when": "pico", "set": {}}]}, ["rules[0].when", "'pico'", "a mapping"]),
        ({"rules": [{"when": {}, "set": None}]}, ["rules[0].set", "None", "a mapping"]),
        ({"rules": [{"when": {}, "set": {5: 1}}]}, ["field", "5", "names of fields"]),
        ({"exclude": ["pico"]}, ["exclude[0]", "'pico'", "a mapping"]),
        ({"defaults": {"finetune": 5, "finetune.lr": 3.0}}, ["finetune", "5", "a mapping of fields"]),
        ({"defaults": {"finetune.lr": 3.0, "finetune": 5}}, ["finetune", "5", "a mapping of fields"]),
        ({"defaults": {"finetune": {"lr": 1.0, "lr.peak": 2.0}}}, ["lr", "1.0", "a mapping of fields"]),
        (
            {"defaults": SMALL["defaults"] | {"finetune.randaugment": "${foo}"}},
            ["finetune.randaugment: '${foo}'", "key 'foo' not found"],
        ),
        (
            {"axes": {"strategy": ["scratch"], "finetune.lr": ["${foo}"]}},
            ["finetune.lr: '${foo}'", "key 'foo' not found"],
        ),
        ({"data": {"shards": "x", "source": "${foo}"}}, ["source: '${foo}'", "key 'foo' not found"]),
        ({"resources": {"gpus_per_node": 0}}, ["resources.gpus_per_node", "0", "from 1 on"]),
        ({"resources": {"nodes": -1}}, ["resources.nodes", "-1", "from 1 on"]),
        ({"resources": {"gpus_per_node": 2}}, ["engine", "single", "ddp", "2 ranks"]),
        (
            {"defaults": SMALL["defaults"] | {"engine": "fsdp", "fsdp.replicas": 4}},
            ["fsdp.replicas", "4", "divisors of the 1 ranks"],
        ),
        (
            {
                "resources": {"gpus_per_node": 2},
                "defaults": SMALL["defaults"]
                | {"engine": "ddp", "pretrain.global_batch": 96, "pretrain.micro_batch": 32},
            },
            ["pretrain.micro_batch", "32", "divisors of the 48 images of a rank"],
        ),
        (
            {"defaults": SMALL["defaults"] | {"finetune.micro_batch": 8}},
            ["finetune.mix_group", "16", "divisors of the 8 images"],
        ),
        ({"data": {"shards": "x", "workers": -1}}, ["data.workers", "-1", "from 0 on"]),
        ({"data": {"shards": "x", "lanes": 0}}, ["data.lanes", "0", "from 1 on"]),
        ({"defaults": SMALL["defaults"] | {"finetune.betas": [0.9, 1.5]}}, ["finetune.betas", "1.5", "below 1"]),
        ({"defaults": SMALL["defaults"] | {"finetune.lr": math.nan}}, ["finetune.lr", "nan", "above 0"]),
        ({"defaults": SMALL["defaults"] | {"finetune.lr": math.inf}}, ["finetune.lr", "inf", "above 0"]),
        ({"defaults": SMALL["defaults"] | {"finetune.mixup": math.nan}}, ["finetune.mixup", "nan"]),
        ({"defaults": SMALL["defaults"] | {"finetune.clip": -1.0}}, ["finetune.clip", "-1.0", "from 0 on"]),
        ({"defaults": SMALL["defaults"] | {"finetune.weight_decay": -3}}, ["finetune.weight_decay", "-3.0"]),
        ({"defaults": SMALL["defaults"] | {"pretrain.min_lr": -1.0}}, ["pretrain.min_lr", "-1.0", "from 0 on"]),
        ({"defaults": SMALL["defaults"] | {"faults.spike": math.nan}}, ["faults.spike", "nan", "from 0 on"]),
        (
            {"defaults": SMALL["defaults"] | {"pretrain.global_batch": 0, "probe": [{"kind": "knn"}]}}
            | {"axes": {"strategy": ["scratch"], "size": ["pico"]}},
            ["probe.global_batch", "0", "above 0"],
        ),
    ],
)
def test_mistakes_name_field_value_and_what_is_valid(tmp_path: Path, changes: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        runs(study_of(tmp_path, **changes), "f")
    for part in told:
        assert part in str(caught.value)


def test_what_names_a_run(tmp_path: Path) -> None:
    run = runs(study_of(tmp_path), "f")[0]
    name = identity.run_id(run, "f")

    def renamed(**changes: Any) -> bool:
        return identity.run_id(dataclasses.replace(run, **changes), "f") != name

    train = run.train
    moved = dataclasses.replace(run.data, shards="elsewhere", workers=7)
    assert not renamed(data=moved, study="other")
    assert not renamed(engine="ddp", compile=True, checkpointing=True)
    assert not renamed(train=dataclasses.replace(train, micro_batch=8, log_every=1, checkpoint_every=3))
    assert not renamed(mae=dataclasses.replace(run.mae, mask_ratio=0.5))
    assert renamed(seed=1) and renamed(precision="bf16") and renamed(parent="x")
    assert renamed(train=dataclasses.replace(train, lr=2.0))
    assert renamed(train=dataclasses.replace(train, global_batch=32))
    assert renamed(ar=dataclasses.replace(run.ar, order="column"))
    assert identity.run_id(run, "other data") != name
    timed = dataclasses.replace(run, purpose="throughput")
    assert identity.run_id(dataclasses.replace(timed, engine="ddp"), "f") != identity.run_id(timed, "f")


def test_a_new_field_with_a_default_renames_no_run(tmp_path: Path) -> None:
    """A config whose schema has one more field, at its default, hashes as before."""
    run = runs(study_of(tmp_path), "f")[0]
    before = identity.hashed_fields(run, "f")
    flat = identity.flatten(run)
    assert flat["train.layer_decay"] == 1.0
    assert "train.layer_decay" not in before  # at its default: as if the field had never existed


def test_ablations_change_one_factor_at_a_time() -> None:
    """Every pretraining differs from the default's in one field; one direction in finetuning shares the pretraining."""
    study = load_study(PACKAGED / "ablations.yaml")
    table = [run for run in runs(study, "f") if run.seed == 0]
    default = next(run for run in table if run.strategy == "ar")
    others = [run for run in table if (run.strategy, run.stage) == ("ar", "pretrain")][1:]
    flat = identity.flatten(default)
    changes = [
        {name for name, value in identity.flatten(run).items() if value != flat[name]} - {"run"} for run in others
    ]
    assert all(len(change) == 1 for change in changes)
    assert set().union(*changes) == {
        "ar.cluster_side", "ar.order", "ar.decoder_depth", "ar.decoder_width", "ar.target",
    }  # fmt: skip
    assert len(others) == 12
    finetunings = [run for run in table if run.parent == default.run]
    assert [run.train.scan_directions for run in finetunings] == [4, 1]
    masked = [run for run in table if (run.strategy, run.stage) == ("mae", "pretrain")]
    assert [run.train.scan_directions for run in masked] == [4, 1]
    control = [run for run in table if run.strategy == "scratch"]
    assert [run.train.scan_directions for run in control] == [4, 1]


def test_throughput_is_fifty_steps_each() -> None:
    table = runs(load_study(PACKAGED / "throughput.yaml"), "f")
    assert {(run.train.images or 0) / run.train.global_batch for run in table} == {50}
    assert {run.purpose for run in table} == {"throughput"}
    assert {(run.strategy, run.encoder, run.size, run.stage) for run in table} >= {
        ("mae", "vit", "huge", "pretrain"), ("ar", "mamba", "base", "finetune"), ("scratch", "vit", "base", "finetune"),
    }  # fmt: skip


def test_every_packaged_study_expands() -> None:
    for path in sorted(PACKAGED.glob("*.yaml")):
        study = load_study(path)
        facts = data_facts(study.data)
        assert runs(study, "f", facts.samples, facts.classes)


def test_quickstart_is_eighteen_stages_with_equal_images() -> None:
    table = runs(load_study(PACKAGED / "quickstart.yaml"), "f")
    assert len(table) == 18
    by_id = {run.run: run for run in table}
    seen: dict[tuple[str, str], int] = {}
    for run in table:
        if run.stage == "finetune":
            parent = by_id[run.parent].train.images if run.parent else 0
            seen[run.strategy, run.size] = (run.train.images or 0) + (parent or 0)
    totals = {strategy: {seen[strategy, size] for size in ("pico", "nano", "micro")} for strategy, _ in seen}
    assert totals["ar"] == totals["mae"] == totals["supervised"]


def test_config_survives_its_file(tmp_path: Path) -> None:
    for run in runs(study_of(tmp_path), "f"):
        path = tmp_path / "config.yaml"
        path.write_text(dump(run))
        assert load_run(path) == run


def test_overrides(tmp_path: Path) -> None:
    run = runs(study_of(tmp_path), "f")[0]
    path = tmp_path / "config.yaml"
    path.write_text(dump(run))
    changed = load_run(path, ["train.lr=5e-4", "seed=3", "train.betas=[0.9, 0.95]"])
    assert (changed.train.lr, changed.seed, changed.train.betas) == (5e-4, 3, (0.9, 0.95))
    for override, told in [
        ("train.rate=1", "train.rate"),
        ("size=vast", "vast"),
        ("seed", "key=value"),
        ("data.source=${foo}", "foo"),
    ]:
        with pytest.raises(UserError, match=told):
            load_run(path, [override])


def test_nested_and_dotted_fields_of_a_section_meet() -> None:
    expected = {"a": {"b": {"c": 1, "d": 2}, "e": 3}}
    assert nested({"a.b.c": 1, "a": {"b": {"d": 2}, "e": 3}}) == expected
    assert nested({"a": {"b": {"d": 2}, "e": 3}, "a.b": {"c": 1}}) == expected


@given(st.dictionaries(st.sampled_from(["a", "b.c", "b.d", "e.f.g"]), st.integers(), min_size=1))
def test_nested_keeps_every_leaf(dotted: dict[str, int]) -> None:
    assert identity.flatten(nested(dotted)) == dotted


def test_defaults_of_the_schema_are_pinned() -> None:
    """Changing a default renames or, worse, confuses old runs: bump SCHEMA when this fails."""
    run = RunConfig()
    assert (run.schema, run.train.weight_decay, run.train.betas, run.train.clip) == (1, 0.05, (0.9, 0.95), 3.0)
