"""config.cfg, read as spaCy reads it.

That is as confection's `Config.from_str` does: configparser, section names split at dots, values decoded as
JSON where they decode. Neither is imported, which would double the daemon's memory.
"""

from __future__ import annotations

import configparser
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import orjson

from spancat_daemon import frugal_json
from spancat_daemon.checkpoint.tree import shown
from spancat_daemon.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CONFIG_BYTES = 4 << 20
"""Largest config.cfg: real ones have kilobytes."""

_REMEMBERED: Final = 8
_REMEMBERED_BYTES: Final = 256 << 10  # a usual one has 3 to 10 KiB, one of a hundred pipes 100
_MAX_KEY_CHARACTERS = 1000
_REFERENCE = re.compile(r"\$\{([\w.:-]+)\}")
_JSON_BEGINNINGS = ("[", "{", '"')
_LITERALS = {"True": True, "False": False, "None": None}
_MAX_SECTION_DEPTH = 64
_LONGEST_SHOWN = 200
_MAX_REFERENCES = 16  # references to references, as many as nobody writes by hand


def parse_config(data: bytes) -> dict[str, Any]:
    """Parse config.cfg into nested dictionaries.

    JSON values are decoded; references (``${…}``) and escapes (``$$``) stay as they are written. What is
    returned may be so again, and is never to be changed.

    Raises:
        Rejected: it is not one.
    """
    return _parse_again(data) if len(data) <= _REMEMBERED_BYTES else _parse(data)


@lru_cache(maxsize=_REMEMBERED)
def _parse_again(data: bytes) -> dict[str, Any]:
    # It is read before and while it is copied, and is the same in all checkpoints of a training.
    return _parse(data)


def _parse(data: bytes) -> dict[str, Any]:
    where = "config.cfg"
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    if len(data) > MAX_CONFIG_BYTES:
        raise Rejected(f"is larger than {MAX_CONFIG_BYTES:,} bytes", where=where)
    try:
        text = data.decode("utf-8")
        _check_lines(text)
        parser.read_string(text, source=where)
    except UnicodeDecodeError:
        raise Rejected("is not text, so not a spaCy configuration", where=where) from None
    except configparser.Error as error:
        problem = shown(" ".join(error.message.split())[:200])
        raise Rejected(f"is not a spaCy configuration: {problem}", where=where) from None
    if parser.defaults():
        # Every section has all of them: some kilobytes can ask for gigabytes
        raise Rejected(f"has a [{parser.default_section}], which spaCy does not write", where=where)
    config: dict[str, Any] = {}
    # Shallow sections first, so that a value never hides behind a section of the same name unnoticed.
    for section in sorted(parser.sections(), key=lambda name: name.count(".")):
        node = _node(config, section)
        for key, text in parser.items(section):
            node[key] = _value(text)
            if node[key] is text and text[:1] in _JSON_BEGINNINGS and not _is_json(text):
                raise Rejected(f"the value of [{_short(section)}] {_short(key)} is cut off", where=where)
    if not isinstance(config.get("nlp"), dict):
        raise Rejected(
            "has no [nlp], so it is not a spaCy pipeline's",
            where=where,
            hint="`source` must be the folder that spaCy saves to",
        )
    return config


def _node(config: dict[str, Any], section: str) -> dict[str, Any]:
    """Return where the values of a section go, made if need be."""
    parts = section.split(".")
    if len(parts) > _MAX_SECTION_DEPTH:
        raise Rejected(f"[{_short(section)}] is nested too deeply", where="config.cfg")
    node = config
    for part in parts:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise Rejected(f"[{_short(section)}] is a section and a value", where="config.cfg")
    return node


def _short(name: str) -> str:
    return shown(name[:_LONGEST_SHOWN])


def _check_lines(text: str) -> None:
    """Keep configparser from lines that would take it hours: its pattern is quadratic without a delimiter."""
    for line in text.split("\n"):
        key = line[:_MAX_KEY_CHARACTERS]
        if len(line) > _MAX_KEY_CHARACTERS and "=" not in key and ":" not in key:
            raise Rejected("has an overlong line that is not a value", where="config.cfg")


def _value(text: str) -> Any:
    try:
        value = frugal_json.loads(text.encode())
    except orjson.JSONDecodeError:
        return _LITERALS.get(text, text)
    except ValueError as error:
        raise Rejected(f"has a value of {error}", where="config.cfg") from None
    # As confection: "${a.b}" in quotes is the same reference as without.
    return text if isinstance(value, str) and _REFERENCE.search(text) else value


def _is_json(text: str) -> bool:
    """What spaCy wrote as JSON and orjson refuses: references within, and NaN."""
    try:
        json.loads(_REFERENCE.sub("0", text))
    except (ValueError, RecursionError):
        return False
    return True


def resolve(config: Mapping[str, Any], value: Any) -> Any:
    """Follow a value of a parsed configuration that is one whole reference to what it means.

    Others, and references that lead nowhere, are returned as they are.
    """
    for _ in range(_MAX_REFERENCES):
        if not isinstance(value, str):
            return value
        reference = _REFERENCE.fullmatch(value.strip('"'))
        if reference is None:
            return value.replace("$$", "$")
        target: Any = config
        for part in reference[1].replace(":", ".").split("."):
            if not isinstance(target, dict) or part not in target:
                return value
            target = target[part]
        value = target
    return value
