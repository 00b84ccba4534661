"""Recipes: published numbers as data, laid under the defaults of a study, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.reading import load_yaml

PACKAGED = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class Block:
    """Fields that a recipe sets where `when` holds (as in a study's rules), and where their values come from."""

    when: dict[str, Any]
    set: dict[str, Any]
    source: str  # a name among the recipe's sources
    why: str
    where: str  # "arm.blocks[0]", for messages


def load_recipe(name: str) -> list[Block]:
    """The blocks of the packaged recipe `name`, or of a recipe file; UserError names what is wrong in it."""
    path = Path(name) if name.endswith(".yaml") else PACKAGED / f"{name}.yaml"
    if not path.is_file():
        packaged = ", ".join(sorted(found.stem for found in PACKAGED.glob("*.yaml")))
        raise UserError("recipes", name, f"a packaged recipe ({packaged}) or a .yaml file")
    given = load_yaml(path)
    sources, blocks = given.get("sources"), given.get("blocks")
    if set(given) != {"sources", "blocks"} or not isinstance(sources, dict) or not isinstance(blocks, list):
        raise UserError("recipes", str(path), "a mapping of sources and a list of blocks")
    return [_block(block, sources, f"{path.stem}.blocks[{number}]") for number, block in enumerate(blocks)]


def _block(given: Any, sources: dict[str, str], where: str) -> Block:
    if not isinstance(given, dict) or not {"when", "set", "source"} <= set(given) <= {"when", "set", "source", "why"}:
        raise UserError(where, given, "a mapping with when, set, source and perhaps why")
    if given["source"] not in sources:
        raise UserError(f"{where}.source", given["source"], tuple(sources))
    if given["source"] == "ours" and not given.get("why"):
        raise UserError(f"{where}.why", None, "the reason for a number that nobody has published")
    for part in ("when", "set"):
        require_mapping(f"{where}.{part}", given[part])
    return Block(given["when"], given["set"], given["source"], given.get("why", ""), where)


def require_mapping(name: str, given: Any) -> None:
    """UserError unless `given`, a `when` or `set`, is a mapping."""
    if not isinstance(given, dict):
        raise UserError(name, given, "a mapping of fields to values")
