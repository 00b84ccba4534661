"""study.yaml to the cells of a sweep: axes multiplied, recipes, defaults and rules laid over each other."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from models.config import ENCODERS, ARConfig, MAEConfig
from models.ladder import SIZES
from scaling.checks import choice, folder_name
from scaling.config import (
    FINETUNE,
    PRETRAIN,
    PURPOSES,
    STRATEGIES,
    DataConfig,
    DeepSpeedConfig,
    EvaluatorConfig,
    FaultsConfig,
    FSDPConfig,
    ModelConfig,
    ResourcesConfig,
    TrainConfig,
)
from scaling.errors import UserError
from scaling.reading import load_yaml, merge
from scaling.rundir import STUDY
from scaling.study.recipe import Block, load_recipe, require_mapping

PACKAGED = Path(__file__).resolve().parent.parent / "studies"
KEYS = (
    "name",
    "purpose",
    "data",
    "recipes",
    "defaults",
    "axes",
    "rules",
    "exclude",
    "match",
    "throughput",
    "tune",
    "resources",
)
MATCHES = ("images", "flops", "gpu_hours")
NAMED_AXES = {"strategy": STRATEGIES, "encoder": ENCODERS, "size": tuple(SIZES)}
FINETUNE_384 = dataclasses.replace(FINETUNE, image_size=384)
EITHER = (("images", "epochs", "branches"), ("lr", "base_lr"))
"""Fields of which a stage has exactly one: a layer that gives the one takes back the other."""


@dataclass(frozen=True)
class CellConfig:
    """One cell of the sweep: what its stages share, and a section for each stage.

    `variant` is any name that rules refer to, and no field of a run. The stage `finetune_384` exists where its images
    or epochs are given, and a probe of the encoder before it sees a label where `probe` lists its evaluators. `budget`
    of the whole cell is in the unit of the study's `match`.
    """

    variant: str = ""
    budget: float | None = None
    strategy: str = "ar"
    encoder: str = "mamba"
    size: str = "base"
    seed: int = 0
    engine: str = "single"
    precision: str = "fp32"
    compile: bool = False
    checkpointing: bool = False
    fsdp: FSDPConfig = field(default_factory=FSDPConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    ar: ARConfig = field(default_factory=ARConfig)
    mae: MAEConfig = field(default_factory=MAEConfig)
    pretrain: TrainConfig = PRETRAIN
    probe: list[EvaluatorConfig] = field(default_factory=list)
    finetune: TrainConfig = FINETUNE
    finetune_384: TrainConfig = FINETUNE_384
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)


@dataclass(frozen=True)
class Cell:
    """A cell's place on the axes of its study, and what stands there."""

    point: dict[str, Any]
    config: CellConfig


@dataclass(frozen=True)
class Tune:
    """Fields whose values are chosen for each arm, on this fraction of the training images (see scaling.study.tune)."""

    grid: dict[str, list[Any]]
    held_out: float = 0.05


@dataclass(frozen=True)
class Study:
    """A study as its file has it, keys checked."""

    name: str
    purpose: str
    data: DataConfig
    recipes: list[Block]
    defaults: dict[str, Any]
    axes: dict[str, list[Any]]
    rules: list[dict[str, Any]]
    exclude: list[dict[str, Any]]
    match: str | None
    throughput: str | None
    tune: Tune | None
    resources: dict[str, Any]
    given: dict[str, Any]


def find_study(name: str, root: Path) -> Path:
    """The study file that STUDY names: a file, a study folder, its name under the root, or a packaged study."""
    tried = [Path(name), Path(name) / STUDY, root / name / STUDY, PACKAGED / f"{name}.yaml"]
    for path in tried:
        if path.is_file():
            return path
    packaged = ", ".join(sorted(path.stem for path in PACKAGED.glob("*.yaml")))
    raise UserError("STUDY", name, f"a study file, a study folder under {root}, or a packaged study ({packaged})")


def load_study(path: Path) -> Study:
    """The study in `path`; UserError names the first thing in it that is not valid."""
    given = load_yaml(path)
    for key in given:
        choice("field", key, KEYS)
    for key in ("name", "data", "axes"):
        if not given.get(key):
            raise UserError(key, given.get(key), "a value: every study has name, data and axes", why=str(path))
    name = str(given["name"])
    folder_name("name", name)
    axes = _expect(given, "axes", dict)
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"axes.{axis}", values, "a list of at least one value")
        for value in values if axis in NAMED_AXES else []:
            choice(axis, value, NAMED_AXES[axis])
    rules = _expect(given, "rules", list)
    for number, rule in enumerate(rules):
        if not isinstance(rule, dict) or set(rule) != {"when", "set"}:
            raise UserError(f"rules[{number}]", rule, "a mapping with when and set")
        _require_conditions(f"rules[{number}].when", rule["when"])
        require_mapping(f"rules[{number}].set", rule["set"])
    recipes = [block for recipe in _expect(given, "recipes", list) for block in load_recipe(str(recipe))]
    for block in recipes:
        _require_conditions(f"{block.where}.when", block.when)
    exclude = _expect(given, "exclude", list)
    for number, when in enumerate(exclude):
        _require_conditions(f"exclude[{number}]", when)
    return Study(
        name=name,
        purpose=choice("purpose", given.get("purpose", "accuracy"), PURPOSES),
        data=merge(DataConfig, _expect(given, "data", dict)),
        recipes=recipes,
        defaults=_expect(given, "defaults", dict),
        axes=axes,
        rules=rules,
        exclude=exclude,
        match=choice("match", given.get("match"), (None, *MATCHES)),
        throughput=given.get("throughput"),
        tune=_tune(given["tune"], axes) if given.get("tune") else None,
        resources=_expect(given, "resources", dict),
        given=given,
    )


def _expect(given: dict[str, Any], key: str, kind: type) -> Any:
    value = given.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise UserError(key, value, f"a {'mapping' if kind is dict else 'list'}")
    return value


def _require_conditions(where: str, when: Any) -> None:
    """UserError for a strategy, encoder or size that there is not: such a rule would hold nowhere, and say nothing."""
    require_mapping(where, when)
    for name, wanted in when.items():
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if name in NAMED_AXES:
                choice(f"{where}.{name}", value, NAMED_AXES[name])


def _tune(given: Any, axes: dict[str, list[Any]]) -> Tune:
    grid = given.get("grid") if isinstance(given, dict) else None
    if not isinstance(grid, dict) or not grid or not set(given) <= {"grid", "held_out"}:
        raise UserError("tune", given, "a mapping with grid (fields with their values) and perhaps held_out")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"tune.grid.{name}", values, "a list of at least one value")
        if name in axes:
            raise UserError(f"tune.grid.{name}", values, "a field that is no axis of the study")
    held_out = given.get("held_out", Tune.held_out)
    if not isinstance(held_out, float) or not 0 < held_out < 1:
        raise UserError("tune.held_out", held_out, "a fraction between 0 and 1")
    return Tune(grid, held_out)


def nested(dotted: dict[str, Any]) -> dict[str, Any]:
    """{"pretrain.lr": 1} as {"pretrain": {"lr": 1}}; already nested values pass through and are merged.

    UserError for a key that is no name, and where one name is given as a value and as a section of fields.
    """
    tree: dict[str, Any] = {}
    for name, value in dotted.items():
        if not isinstance(name, str):
            raise UserError("field", name, "the names of fields, as in pretrain.lr")
        branch = nested(value) if isinstance(value, dict) else value
        for part in reversed(name.split(".")):
            branch = {part: branch}
        _join(tree, branch, "")
    return tree


def _join(tree: dict[str, Any], branch: dict[str, Any], section: str) -> None:
    """Adds the fields of `branch` to those of `tree`, in place."""
    for name, value in branch.items():
        if name in tree and isinstance(tree[name], dict) != isinstance(value, dict):
            alone = tree[name] if isinstance(value, dict) else value
            raise UserError(f"{section}{name}", alone, "a mapping of fields, as further fields of it are given")
        if isinstance(value, dict):
            _join(tree.setdefault(name, {}), value, f"{section}{name}.")
        else:
            tree[name] = value


def lay(tree: dict[str, Any], layer: dict[str, Any]) -> None:
    """Lays the nested fields of `layer` over `tree`, in place."""
    for names in EITHER:
        if sum(layer.get(name) is not None for name in names) == 1:
            for name in names:
                tree.pop(name, None)
    for name, value in layer.items():
        if isinstance(value, dict):
            if not isinstance(tree.get(name), dict):
                tree[name] = {}
            lay(tree[name], value)
        else:
            tree[name] = value


def _matches(when: dict[str, Any], cell: dict[str, Any], where: str) -> bool:
    """Whether every condition of `when` holds; a list means any of its values, or itself where an axis has lists."""
    for name, wanted in when.items():
        if name not in cell:
            raise UserError(f"{where}.{name}", wanted, tuple(cell), why="conditions name axes of the study")
        if cell[name] != wanted and not (isinstance(wanted, list) and cell[name] in wanted):
            return False
    return True


def cells(study: Study) -> list[Cell]:
    """Every cell of the sweep that is not excluded, in the order of the axes.

    Recipes lie under the defaults, these under the axes, and the rules over these, later ones over earlier. Fields that
    are tuned lie over all.
    """
    tuned = study.tune.grid if study.tune else {}
    found = []
    made: dict[tuple[str, str], Any] = {}
    for values in itertools.product(*study.axes.values()):
        axis = dict(zip(study.axes, values, strict=True))
        point = {"variant": "", "strategy": "ar", "encoder": "mamba", "size": "base", "seed": 0} | axis
        if any(_matches(when, point, "exclude") for when in study.exclude):
            continue
        fields: dict[str, Any] = {}
        lay(fields, nested({"resources": study.resources}))
        for block in study.recipes:
            if _matches(block.when, point, f"{block.where}.when"):
                lay(fields, nested(block.set))
        lay(fields, nested(study.defaults))
        lay(fields, nested(axis))
        for number, rule in enumerate(study.rules):
            if _matches(rule["when"], point, f"rules[{number}].when"):
                lay(fields, nested(rule["set"]))
        lay(fields, nested({name: value for name, value in axis.items() if name in tuned}))
        found.append(Cell(point, _cell(fields, made)))
    if not found:
        raise UserError("exclude", study.exclude, "conditions that leave at least one cell")
    return found


def _cell(fields: dict[str, Any], made: dict[tuple[str, str], Any]) -> CellConfig:
    """`fields` as a checked cell. `made` keeps what cells share, as sweeps have thousands, and as many seeds."""
    for name, value in fields.items():
        key = (name, repr(value))
        if key not in made:
            seed = name == "seed" and type(value) is int
            made[key] = value if seed else getattr(merge(_schema_of(name), {name: value}), name)
    return CellConfig(**{name: made[name, repr(value)] for name, value in fields.items()})


@cache
def _schema_of(name: str) -> type:
    """What a field of a cell is merged into: that field alone, as merging a whole cell costs 40 ms."""
    for item in dataclasses.fields(CellConfig):
        if item.name == name:
            alone = field(default=item.default, default_factory=item.default_factory)
            return dataclasses.make_dataclass("Field", [(name, get_type_hints(CellConfig)[name], alone)])
    return CellConfig  # which refuses it and says what it has
