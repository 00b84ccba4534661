"""Configs from and to YAML: defaults < file < key=value, merged by OmegaConf; unknown keys are errors."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scaling.checks import check, choice
from scaling.config import SCHEMA, STAGE_DEFAULTS, STAGES, RunConfig
from scaling.errors import UserError


class Loader(yaml.SafeLoader):
    """YAML 1.1 but for its numbers to base 60: 12:00:00 is the text that it looks like, not 43,200."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the class above has it
        first: [("tag:yaml.org,2002:str", re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?$")), *known]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


QUICK = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""For the many files that a run or a study has written itself: several times as fast."""


def merge(schema: Any, given: Any, overrides: list[str] | None = None) -> Any:
    """An object of the dataclass `schema` (an instance gives the defaults) with `given` and key=value laid over it.

    Unknown keys and values of the wrong type raise UserError naming them.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(given))
    except OmegaConfBaseException as error:
        raise _explained(error, schema) from None
    except TypeError as error:  # a list where a mapping belongs, or the reverse
        raise UserError("config", given, str(error)) from None
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError("argument", override, "key=value, as in train.lr=1e-3")
        try:
            change = OmegaConf.create({})
            OmegaConf.update(change, key, yaml.load(value, Loader))
            merged = OmegaConf.merge(merged, change)
        except OmegaConfBaseException as error:
            raise _explained(error, schema) from None
        except TypeError as error:
            raise UserError(key, value, str(error)) from None
        except yaml.YAMLError:
            raise UserError(key, value, "a YAML value") from None
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # of a ${...}, which OmegaConf looks up only now
        given = error.child_node._value() if error.child_node is not None else None
        why = str(error.msg or error).splitlines()[0]
        raise UserError(
            str(error.full_key or "config"), given, "the name of a field of this type in ${}", why
        ) from None


def _explained(error: OmegaConfBaseException, schema: Any) -> UserError:
    """OmegaConf's error as ours: which key, what it was, what could stand there."""
    name = error.full_key or error.key or "config"
    inside_list = isinstance(error.object_type, type) and dataclasses.is_dataclass(error.object_type)
    valid = _valid_keys(error.object_type, "") if inside_list else _valid_keys(schema, str(name))
    message = str(error.msg or error).splitlines()[0]
    if valid and str(name).rpartition(".")[2] not in valid:
        return UserError("field", str(name), valid, why="no such field")
    return UserError(str(name), error.value if error.value is not None else "", message)


def _valid_keys(schema: Any, name: str) -> list[str]:
    """The fields of the section that `name` (dotted) lies in."""
    node: Any = schema() if isinstance(schema, type) else schema
    for part in name.split(".")[:-1]:
        node = getattr(node, part, None)
    return [item.name for item in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError("file", str(path), "a readable YAML file", why=error.strerror or "") from None
    except UnicodeDecodeError as error:
        raise UserError("file", str(path), "YAML in UTF-8", why=str(error)) from None
    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise UserError("file", str(path), "YAML", why=" ".join(str(error).split())) from None
    if not isinstance(value, dict):
        raise UserError("file", str(path), "a mapping of fields at its top")
    return value


def load_run(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """The run config in `path` with key=value overrides, checked."""
    given = load_yaml(path)
    stage = choice("stage", given.get("stage", "pretrain"), STAGES)
    config: RunConfig = merge(
        dataclasses.replace(RunConfig(), stage=stage, train=STAGE_DEFAULTS[stage]), given, overrides
    )
    if config.schema != SCHEMA:
        raise UserError("schema", config.schema, str(SCHEMA), why="written by another version of armscale")
    check(config)
    return config


def dump(config: Any) -> str:
    """YAML of a config, every field in the order of its dataclass."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """YAML has lists, not tuples."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
