"""The JSON schema of daemon.toml, for editors."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.config import units
from spancat_daemon.config.model import Configuration
from spancat_daemon.config.values import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE: Final = r"\$\{"


def json_schema() -> dict[str, Any]:
    """What a daemon.toml may hold, as it is written: durations and sizes are text.

    A text with a variable in it is accepted wherever a text is.
    """
    schema = Configuration.model_json_schema()
    for table in _tables(Table):
        node = schema if table is Configuration else schema["$defs"].get(table.__name__, {})
        for key, meaning in _meanings(table).items():
            described = node.get("properties", {}).get(key)
            if described is not None and meaning != _of_table(described, schema):
                described.setdefault("description", meaning)
    del schema["properties"]["path"]
    schema["required"].remove("path")
    schema["properties"]["watch"]["minItems"] = 1
    schema["title"] = "daemon.toml"
    schema["description"] = "The configuration of spancat-daemon."
    written = _as_written(schema)
    settle = {"required": ["settle"]}
    definitions = written["$defs"]
    definitions["Health"]["oneOf"] = [{"required": ["command"]}, {"required": ["url"]}]
    definitions["Watch"]["if"] = settle
    definitions["Watch"]["then"] = {"required": ["writer"], "properties": {"writer": {"const": "any"}}}
    return {"$schema": DIALECT, **written}


def _of_table(node: dict[str, Any], schema: dict[str, Any]) -> str | None:
    """What the table that is a key's value says of itself, if it is one."""
    name = str(node.get("$ref", "")).rpartition("/")[2]
    return schema["$defs"].get(name, {}).get("description")  # type: ignore[no-any-return]  # of JSON


def _tables(base: type[Table]) -> Iterator[type[Table]]:
    for table in base.__subclasses__():
        yield table
        yield from _tables(table)


def _meanings(table: type[Table]) -> dict[str, str]:
    """What stands below each key of a table in the source, its own and those it takes over."""
    found: dict[str, str] = {}
    for owner in reversed(table.__mro__):
        if not (issubclass(owner, Table) and owner is not Table):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        lines = body.body if isinstance(body, ast.ClassDef) else []
        for key, below in pairwise(lines):
            if not (isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[key.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def _as_written(node: Any) -> Any:
    """The schema of values as the text of the file, instead of as the Python values they become."""
    if isinstance(node, list):
        return [_as_written(item) for item in node]
    if not isinstance(node, dict):
        return node
    if {"type": "null"} in node.get("anyOf", ()):
        node = _without_null(node)
    node = {key: value if key == "default" else _as_written(value) for key, value in node.items()}
    if node.get("format") == "path":
        del node["format"]
    if node.get("type") != "object":
        node.pop("title", None)  # repeats the name of the key
    if "default" in node:
        node["default"] = _default_as_written(node)
        if isinstance(node["default"], dict):  # a table that is left out is described by its own keys
            del node["default"]
    for constraint in ("pattern", "enum"):
        if constraint in node:
            node["anyOf"] = [{constraint: node.pop(constraint)}, {"pattern": _VARIABLE}]
    return node


def _without_null(node: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: an absent path is "", anything else that is absent is not written."""
    kind: dict[str, Any]
    (kind,) = [kind for kind in node["anyOf"] if kind != {"type": "null"}]
    rest = {key: value for key, value in node.items() if key not in {"anyOf", "default"}}
    return kind | rest | ({"default": ""} if kind.get("format") == "path" else {})


def _default_as_written(node: dict[str, Any]) -> Any:
    default, pattern = node["default"], node.get("pattern")
    if pattern == units.DURATION_PATTERN:
        return units.format_duration(default)
    if pattern == units.SIZE_PATTERN:
        return units.format_size(default)
    return "" if default == "." else default
