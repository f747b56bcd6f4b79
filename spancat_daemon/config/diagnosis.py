"""From what pydantic found to what a user can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args

from spancat_daemon.config.model import (
    CronSchedule,
    DaemonSettings,
    IntervalSchedule,
    Keep,
    LogSettings,
    Watch,
)
from spancat_daemon.config.problems import nearest, one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

    from spancat_daemon.config.places import Path

_KINDS: Final = (
    ("string", "text in quotes"),
    ("bool", "true or false, without quotes"),
    ("int", "a whole number, without quotes"),
    ("float", "a number"),
    ("path", "a path in quotes"),
    ("tuple", "a list in [ ]"),
    ("model", "a table"),
    ("dict", "a table"),
)
_HOMES: Final[tuple[tuple[str, type[BaseModel]], ...]] = (
    ("[daemon]", DaemonSettings),
    ("[log]", LogSettings),
    ("[[watch]]", Watch),
    ("[watch.keep]", Keep),
)


def path_of(error: ErrorDetails) -> Path:
    """The path in the file; pydantic puts the kind of a schedule into it, which the file does not have."""
    path = error["loc"]
    if len(path) > 4 and path[0] == "watch" and path[2] == "schedule":
        return (*path[:4], *path[5:])
    return path


def message(error: ErrorDetails, document: Mapping[str, Any]) -> str:
    """One line: what is wrong, where in the structure, and what to do."""
    path = path_of(error)
    kind = error["type"]
    if kind == "extra_forbidden":
        return unknown(path, document)
    if kind == "missing":
        return f"the key {str(path[-1])!r} is missing in {table_name(path[:-1], document)}{_instead(path)}"
    if kind == "value_error":
        reason = str(error["ctx"]["error"])
        # validators say "must …" or, where they quote the value, "'5x' is not …"
        return f"{_subject(path)}{' ' if reason.startswith('must ') else ': '}{reason}"
    return f"{_subject(path)}{_wanted(path, error)}"


def is_misspelt(error: ErrorDetails, document: Mapping[str, Any]) -> bool:
    """Whether a missing key stands there misspelt, so that its unknown spelling is all there is to say."""
    path = path_of(error)
    if error["type"] != "missing" or not path:
        return False
    table, key = path[:-1], str(path[-1])
    keys = keys_of(table)
    return any(f"{key!r}" in nearest(name, keys) for name in _at(table, document) if name not in keys)


def table_name(path: Path, document: Mapping[str, Any]) -> str:
    """A table as its header is written, with the name of the rule it belongs to."""
    if not path:
        return "the file"
    if path[0] != "watch":
        return f"[{'.'.join(map(str, path))}]"
    header = "[[watch]]" if len(path) <= 2 else f"[watch.{path[2]}]"
    if len(path) > 2 and path[2] == "schedule":
        header = "a schedule of [[watch]]"
    return f"{header} {rule_name(int(path[1]), document)}" if len(path) > 1 else header


def rule_name(index: int, document: Mapping[str, Any]) -> str:
    """``"products"``, or ``#2`` for a rule whose name can't be told."""
    rules = document.get("watch")
    rule = rules[index] if isinstance(rules, list) and index < len(rules) else None
    name = rule.get("name") if isinstance(rule, dict) else None
    return f'"{name}"' if isinstance(name, str) and name.isprintable() and name else f"#{index + 1}"


def keys_of(path: Path) -> tuple[str, ...]:
    """The keys that the table at a path can have."""
    if not path:
        return ("daemon", "log", "watch")
    tables: dict[str, type[BaseModel]] = {"daemon": DaemonSettings, "log": LogSettings}
    model: type[BaseModel] = tables.get(str(path[0]), Watch)
    if len(path) > 2 and path[2] == "schedule":
        return tuple(CronSchedule.model_fields | IntervalSchedule.model_fields)
    if len(path) > 2:
        model = Keep
    return tuple(model.model_fields)


def unknown(path: Path, document: Mapping[str, Any]) -> str:
    """What is wrong with a key that its table does not have."""
    key, table = str(path[-1]), path[:-1]
    written = _at(table, document)
    if len(table) == 4 and key in {"cron", "every"}:
        return "'cron' and 'every' can't stand in one schedule; write one for each"
    if len(table) == 4 and key == "timezone" and "every" in written:
        return "'timezone' goes with 'cron', not with 'every'"
    if not table:
        kind = "table" if isinstance(written.get(key), dict) else "key"
        hint = nearest(key, keys_of(())) or _home(key, table)
        return f"unknown {kind} {key!r}{hint or '; there are [daemon], [log] and [[watch]]'}"
    keys = keys_of(table)
    hint = _home(key, table) or nearest(key, [name for name in keys if name not in written])
    where = table_name(table, document)
    return f"unknown key {key!r} in {where}{hint or nearest(key, keys) or f'; it has {one_of(keys)}'}"


def _home(key: str, table: Path) -> str:
    """Where a key belongs that is known, but in another table."""
    homes = [header for header, model in _HOMES if key in model.model_fields]
    if not homes or (len(table) == 2 and homes == ["[[watch]]"]):
        return ""
    above = ", above [watch.keep]" if homes == ["[[watch]]"] and len(table) > 2 else ""
    return f"; it belongs in {homes[0]}{above}"


def _instead(path: Path) -> str:
    return """; write { cron = "0 3 * * *" } or { every = "1h" }""" if len(path) > 4 else ""


def _wanted(path: Path, error: ErrorDetails) -> str:
    """What should have been there, and what is."""
    kind, given, bounds = error["type"], error["input"], error.get("ctx", {})
    if path == ("watch",):
        return ": a rule begins with [[watch]], in two brackets, and its [watch.keep] stands below it"
    if kind == "literal_error":
        allowed = _choices(path)
        text = isinstance(given, str)
        found = f"{given!r}{nearest(given, allowed)}" if text else _kind_of(given)
        return f" must be {one_of(allowed)}, not {found}"
    if kind in {"greater_than_equal", "less_than_equal"}:
        return f" must be at least {bounds['ge']}" if "ge" in bounds else f" must be at most {bounds['le']}"
    for prefix, wanted in _KINDS:
        if kind.startswith(prefix):
            return f" must be {wanted}, not {_kind_of(given)}"
    return f": {error['msg']}"


def _choices(path: Path) -> tuple[str, ...]:
    model = LogSettings if path[0] == "log" else Watch
    return get_args(model.model_fields[str(path[-1])].annotation)


def _subject(path: Path) -> str:
    names = [str(part) for part in path if not isinstance(part, int)]
    if len(names) > 2 and names[-1] != "schedule":
        return ".".join(names[-2:])
    if path and isinstance(path[-1], int):
        return f"{names[-1]} number {path[-1] + 1}"
    return names[-1] if names else "the file"


def _kind_of(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 40 else "text"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, list):
        return "a list"
    return "a table" if isinstance(value, dict) else "a date or time"


def _at(path: Path, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table at a path of the document, or an empty one."""
    value: Any = document
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return {}
    return value if isinstance(value, dict) else {}
