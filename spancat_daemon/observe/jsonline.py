"""Any Python value as one line of JSON: no value, however odd, raises or grows without bound."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from enum import Enum
from pathlib import PurePath
from typing import Any

import orjson

# journald cuts a line of standard output at LineMax=48K; a line cut there is no JSON any more.
LINE_LIMIT_BYTES = 40 << 10

_OTHER_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_OPTIONS = orjson.OPT_UTC_Z
_FRAMES_KEPT = 20
_CAUSES_KEPT = 5


@dataclasses.dataclass(frozen=True, slots=True)
class _Limits:
    """How much of a value is kept."""

    characters: int
    items: int
    depth: int


# Each is tried when the one before it made too long a line.
_WIDE = _Limits(characters=1 << 30, items=1 << 30, depth=100)
_NARROWING = (_Limits(8192, 256, 8), _Limits(1024, 64, 6), _Limits(200, 16, 4), _Limits(100, 4, 2))


def dumps_line(fields: Mapping[str, Any], *, limit_bytes: int = LINE_LIMIT_BYTES) -> bytes:
    r"""Renders an event as one line of JSON without the newline.

    Never raises for a value's sake. Paths and strings with surrogates (file names that are not UTF-8) show
    their odd bytes as ``\xNN``, bytes likewise, exceptions become ``{type, message, frames}`` without local
    variables, sets become sorted lists, what JSON has no form for becomes its ``repr``. A line longer than
    ``limit_bytes`` has its long strings and lists cut, which is told by a field ``cut``; short fields such
    as digests are never cut.
    """
    try:
        line = orjson.dumps(fields, default=_stand_in, option=_OPTIONS)
        if len(line) <= limit_bytes:
            return line
    except Exception:  # noqa: BLE001, S110  # a surrogate, an int key, a repr that raises: the slow way takes all
        pass
    else:
        return _narrowed(fields, limit_bytes)
    # What has more than this does not fit anyway.
    line = orjson.dumps(_plain(fields, _Limits(limit_bytes, limit_bytes, 100), 0), option=_OPTIONS)
    return line if len(line) <= limit_bytes else _narrowed(fields, limit_bytes)


def dumps(value: Any) -> bytes:
    """Renders any value as JSON of any length; never raises for the value's sake."""
    try:
        return orjson.dumps(value, default=_stand_in, option=_OPTIONS)
    except Exception:  # noqa: BLE001  # as above
        return orjson.dumps(_plain(value, _WIDE, 0), option=_OPTIONS)


def describe_exception(error: BaseException) -> dict[str, Any]:
    """An exception as ``{type, message, frames, cause}``; without local variables, which can hold secrets."""
    return _exception(error, _CAUSES_KEPT)


def _narrowed(fields: Mapping[str, Any], limit_bytes: int) -> bytes:
    for limits in _NARROWING:
        line = orjson.dumps({**_plain(fields, limits, 0), "cut": True}, option=_OPTIONS)
        if len(line) <= limit_bytes:
            return line
    # Thousands of fields: the first ones that fit; timestamp, level, event and rule come first.
    kept: dict[str, Any] = {"cut": True}
    room = limit_bytes - 64
    for key, value in _plain(fields, _NARROWING[-1], 0).items():
        room -= len(orjson.dumps({key: value}, option=_OPTIONS))
        if room < 0:
            break
        kept[key] = value
    return orjson.dumps(kept, option=_OPTIONS)


def _stand_in(value: Any) -> Any:  # one return for each kind of value
    """What orjson is told to write for a value that it has no form for."""
    if isinstance(value, float):  # numpy's float64 is one
        return float(value)
    if isinstance(value, PurePath):
        return _path(value)
    if isinstance(value, BaseException):
        return describe_exception(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, set | frozenset):
        return _sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _repr(value)


def _plain(value: Any, limits: _Limits, depth: int) -> Any:  # noqa: C901, PLR0911  # one for each kind
    """A copy that orjson takes whole: JSON's own types only, no surrogates, no cycles, cut to limits."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return _text(value, limits)
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 64 else _text(_repr(value), limits)
    if isinstance(value, Enum):
        return _plain(value.value, limits, depth + 1)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if depth >= limits.depth:
        return _text(_repr(value), limits)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _plain(getattr(value, name, None), limits, depth + 1) for name in names[: limits.items]}
    if isinstance(value, Mapping):
        return _plain_mapping(value, limits, depth)
    if isinstance(value, list | tuple):
        return _plain_list(value, limits, depth)
    stand_in = _stand_in(value)
    return _plain(stand_in, limits, depth if isinstance(stand_in, str) else depth + 1)


def _plain_mapping(value: Mapping[Any, Any], limits: _Limits, depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        if len(plain) >= limits.items:
            plain["…"] = f"{len(value) - limits.items} more"
            break
        name = _text(key if isinstance(key, str) else _repr(key), limits)
        plain[name] = _plain(item, limits, depth + 1)
    return plain


def _plain_list(value: list[Any] | tuple[Any, ...], limits: _Limits, depth: int) -> list[Any]:
    plain = [_plain(item, limits, depth + 1) for item in value[: limits.items]]
    if len(value) > limits.items:
        plain.append(f"… {len(value) - limits.items} more")
    return plain


def _text(value: str, limits: _Limits) -> str:
    kept = value[: limits.characters]
    try:
        kept.encode()
    except UnicodeEncodeError:
        # PEP 383's surrogates stand for bytes of a file name, and are shown as those.
        errors = "backslashreplace" if _OTHER_SURROGATE.search(kept) else "surrogateescape"
        kept = kept.encode("utf-8", errors).decode("utf-8", "backslashreplace")
    return kept if len(value) <= limits.characters else f"{kept}… {len(value) - limits.characters} more"


def _path(value: PurePath) -> str:
    return _text(str(value), _WIDE)


def _sorted(value: Iterable[Any]) -> list[Any]:
    items = list(value)
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=_repr)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  # whatever a foreign __repr__ does, the line is written
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


def _exception(error: BaseException, causes_left: int) -> dict[str, Any]:
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  # a foreign __str__
        message = _repr(error)
    described: dict[str, Any] = {"type": _type_name(type(error)), "message": _text(message, _WIDE)}
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{_text(code.co_filename, _WIDE)}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    if frames:
        described["frames"] = frames[-_FRAMES_KEPT:]
    if isinstance(error, BaseExceptionGroup) and causes_left > 0:
        described["exceptions"] = [
            _exception(inner, causes_left - 1) for inner in error.exceptions[:_CAUSES_KEPT]
        ]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and causes_left > 0:
        described["cause"] = _exception(cause, causes_left - 1)
    return described


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
