"""From what pydantic found to what a user can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args

from spancat_daemon.config.aftermath import NOT_ALONE
from spancat_daemon.config.problems import any_of, nearest, one_of
from spancat_daemon.config.tables import (
    at,
    header,
    homes_of,
    keys_of,
    models_at,
    path_of,
    subject,
    table_name,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

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


_BOUNDS: Final = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))


def message(error: ErrorDetails, document: Mapping[str, Any]) -> str:
    """One line: what is wrong, where in the structure, and what to do."""
    path = path_of(error)
    kind = error["type"]
    if kind == "extra_forbidden":
        return unknown(path, document)
    if kind == "missing":
        return f"the key {str(path[-1])!r} is missing in {table_name(path[:-1], document)}{_instead(path)}"
    if kind == NOT_ALONE:
        return str(error["ctx"]["reason"])
    if kind == "value_error":
        reason = str(error["ctx"]["error"])
        # validators say "must …" or, where they quote the value, "'5x' is not …"
        return f"{subject(path)}{' ' if reason.startswith('must ') else ': '}{reason}"
    return f"{subject(path)}{_wanted(path, error)}"


def is_misspelt(error: ErrorDetails, document: Mapping[str, Any]) -> bool:
    """Whether a missing key stands there misspelt, so that its unknown spelling is all there is to say."""
    path = path_of(error)
    if error["type"] != "missing" or not path:
        return False
    table, key = path[:-1], str(path[-1])
    keys = keys_of(table)
    return any(f"{key!r}" in nearest(name, keys) for name in at(table, document) if name not in keys)


def unknown(path: Path, document: Mapping[str, Any]) -> str:
    """What is wrong with a key that its table does not have."""
    key, table = str(path[-1]), path[:-1]
    written = at(table, document)
    if _is_schedule(table):
        if key in {"cron", "every"}:
            return "'cron' and 'every' can't stand in one schedule; write one for each"
        if key == "timezone" and "every" in written:
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
    homes = homes_of(key)
    inner = [home for home in homes if len(table) > 2 and home.startswith(f"[{header(table).strip('[]')}.")]
    if not homes or (len(table) == 2 and homes == ["[[watch]]"]):
        return ""
    above = f", above {header(table)}" if homes == ["[[watch]]"] and len(table) > 2 else ""
    return f"; it belongs in {any_of(inner or homes)}{above}"


def _instead(path: Path) -> str:
    return """; write { cron = "0 3 * * *" } or { every = "1h" }""" if _is_schedule(path[:-1]) else ""


def _is_schedule(table: Path) -> bool:
    return len(table) == 4 and table[2] == "schedule"


def _wanted(path: Path, error: ErrorDetails) -> str:
    """What should have been there, and what is."""
    kind, given, bounds = error["type"], error["input"], error.get("ctx", {})
    if path == ("watch",):
        return ": a rule begins with [[watch]], in two brackets, and its [watch.keep] stands below it"
    if len(path) == 3 and path[2] == "after":
        return ": what is told of a swap begins with [[watch.after]], in two brackets"
    if path and path[-1] == "webhook":
        return f""" must be a table, not {_kind_of(given)}; write {{ url = "https://…" }}"""
    if kind == "literal_error":
        allowed = _choices(path)
        text = isinstance(given, str)
        found = f"{given!r}{nearest(given, allowed)}" if text else _kind_of(given)
        return f" must be {one_of(allowed)}, not {found}"
    for bound, words in _BOUNDS:
        if bound in bounds:
            return f" must be {words} {_plain(bounds[bound])}"
    if kind == "finite_number":
        return f" must be a number, not {given}"
    for prefix, wanted in _KINDS:
        if kind.startswith(prefix):
            return f" must be {wanted}, not {_kind_of(given)}"
    return f": {error['msg']}"


def _plain(number: float) -> float:
    """0 and 1 as people write them, not 0.0 and 1.0."""
    return int(number) if number == int(number) else number


def _choices(path: Path) -> tuple[str, ...]:
    (model,) = models_at(path[:-1])
    return get_args(model.model_fields[str(path[-1])].annotation)


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
