"""Recipes: the options of a run as a YAML file, so that it can be repeated exactly."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphprune import __version__
from graphprune.errors import UsageError
from graphprune.options import Options
from graphprune.spec import nearest, typed

SCHEMA = 1
#: Keys of a recipe that are no options.
_ABOUT = ("recipe", "graphprune")


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the options that a recipe sets, or those that a plan was made with.

    Returns
    -------
    dict
        Field of :class:`graphprune.Options` -> value, checked.

    Raises
    ------
    UsageError
        No such file, no YAML, an unknown key, or a value of another type.
    """
    data = mapping_from(path, "recipe")
    if "schema" in data and isinstance(data.get("options"), Mapping):
        data = dict(data["options"])  # a plan, which embeds the options of its run
    if data.get("recipe", SCHEMA) != SCHEMA:
        raise UsageError(f"recipe {path} is of schema {data['recipe']!r}, this graphprune reads {SCHEMA}")
    fields = {item.name for item in dataclasses.fields(Options)}
    values = {key: value for key, value in data.items() if key not in _ABOUT}
    for key in values:
        if key not in fields:
            raise UsageError(f"recipe {path} has a key '{key}' that is no option{nearest(str(key), fields)}")
    return typed(Options, values, f"recipe {path}")


def mapping_from(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """A YAML (or JSON) file that holds keys and values.

    Raises
    ------
    UsageError
        It cannot be read, or holds something else.
    """
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise UsageError(f"{what} {path} must hold keys and values, one 'key: value' a line")
    return {str(key): value for key, value in data.items()}


def dumps(options: Options) -> str:
    """Options as the text of a recipe: what differs from the defaults, and the passes."""
    import yaml

    out: dict[str, Any] = {"recipe": SCHEMA, "graphprune": __version__}
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if item.name == "passes" or value != _default(item):
            out[item.name] = _plain(value)
    return str(yaml.safe_dump(out, sort_keys=False, allow_unicode=True))


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
