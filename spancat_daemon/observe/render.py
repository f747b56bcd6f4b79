"""An event as one line for people: time, level, event, rule, a sentence; nothing drives the terminal."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, Final, TextIO

# Control characters (with them every ANSI escape), soft hyphen, bidi marks and overrides, zero-width and line
# separator characters, surrogates, tags: all of Unicode's Cc, Cf, Cs, Zl and Zp.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
_MARKS: Final = {"debug": "·", "info": "•", "warning": "▲", "error": "✖", "critical": "✖"}
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "1;31", "critical": "1;31"}
_BACKWARDS: Final = frozenset({"rollback", "recovery"})  # not forced by anybody
_RELEASE_ID: Final = re.compile(r"(\d{6,})-\d{8}T\d{6}Z-[0-9a-f]{8}\Z")


@dataclass(frozen=True, slots=True)
class Style:
    """How lines are to look.

    Attributes:
        colour: with SGR colours.
        width: columns that a line of level info or below is cut to; None: never. Warnings and errors are
            never cut: what is wrong must be readable.
        zone: of the times shown; None: the machine's.
    """

    colour: bool = False
    width: int | None = None
    zone: tzinfo | None = None


def style_for(stream: TextIO, environ: Mapping[str, str] = os.environ) -> Style:
    """Colour and width on a terminal, neither elsewhere; respects ``$NO_COLOR`` (https://no-color.org)."""
    try:
        if not stream.isatty():
            return Style()
        width = os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return Style()
    return Style(colour=not environ.get("NO_COLOR") and environ.get("TERM") != "dumb", width=width)


def neutralise(text: str) -> str:
    """The text with all that moves a cursor, sets a colour, turns the direction or hides shown as escapes."""
    return _UNSAFE.sub(_escaped, text)


def escape_for_json(text: str) -> str:
    """JSON with the same characters as JSON escapes: still the same JSON, but harmless on a terminal."""
    return _UNSAFE.sub(lambda found: json.dumps(found.group())[1:-1], text)


def render_event(fields: Mapping[str, Any], style: Style) -> str:
    """One line, without its newline, for one event of the structured log; unknown events as ``key=value``."""
    rest = {str(key): value for key, value in fields.items()}
    level = str(rest.pop("level", "info"))
    event = rest.pop("event", "")
    pieces = [
        (_local_time(rest.pop("timestamp", None), style.zone), "2"),
        (_MARKS.get(level, "•"), _COLOURS.get(level, "")),
        (_shown(event), "1" if level in {"warning", "error", "critical"} else ""),
    ]
    if "rule" in rest:
        pieces.append((_shown(rest.pop("rule")), "36"))
    sentence = _SENTENCES.get(event) if isinstance(event, str) else None
    if sentence is not None:
        pieces += [(part, "") for part in sentence(_Taken(rest))]
    hidden = _HIDDEN.get(event, frozenset()) if isinstance(event, str) else frozenset()
    pieces += [
        (f"{neutralise(key)}={_shown(value)}", "2" if sentence is not None else "")
        for key, value in rest.items()
        if key not in hidden
    ]
    return _laid_out(
        [piece for piece in pieces if piece[0]], style, uncut=level in {"warning", "error", "critical"}
    )


def render_malformed(line: bytes, style: Style) -> str:
    """One line for what is in the log but is no event."""
    text = neutralise(line.decode("utf-8", "backslashreplace"))
    return _laid_out([("not an event:", "33"), (text, "2")], style, uncut=False)


def seconds(value: Any) -> str:
    """A duration: ``0.4ms``, ``12ms``, ``3.2s``, ``2m05s``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _shown(value)
    if value < 0.001:
        return f"{value * 1000:.1f}ms"
    if value < 1:
        return f"{value * 1000:.0f}ms"
    if value < 60:
        return f"{value:.1f}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def size(value: Any) -> str:
    """A number of bytes in decimal units: ``512 B``, ``12.3 MB``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _shown(value)
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 999.95:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


class _Taken:
    """Fields that a sentence uses up; what it leaves is shown after it as ``key=value``."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def raw(self, key: str) -> Any:
        return self._fields.pop(key, None)

    def text(self, key: str, form: str = "{}", shown: Callable[[Any], str] | None = None) -> str:
        """The field put into the form, or nothing when it is absent or empty."""
        value = self._fields.pop(key, None)
        if value is None or value in ("", [], {}):
            return ""
        return form.format((shown or _shown)(value))


def _overwrite(fields: _Taken) -> list[str]:
    trigger = fields.text("trigger")
    forced = fields.raw("forced") is True and trigger not in _BACKWARDS
    return [
        fields.text("release", shown=_release),
        fields.text("previous_release", "← {}", _release),
        trigger,
        "unchanged content" if fields.raw("changed") is False else "",
        "forced" if forced else "",
        *(f"+{_shown(label)}" for label in _listed(fields.raw("labels_added"))),
        *(f"-{_shown(label)}" for label in _listed(fields.raw("labels_removed"))),
        fields.text("metrics", shown=_metrics),
        fields.text("bytes", shown=size),
        fields.text("bytes_written", "({} written)", size),
        *_steps(fields),
        fields.text("swap_s", "swap {}", seconds),
        fields.text("total_s", "total {}", seconds),
        fields.text("reason", "— {}"),
    ]


def _went_back(fields: _Taken) -> list[str]:
    by_itself = fields.raw("automatic") is True
    return [
        fields.text("release", shown=_release),
        fields.text("from_release", "← {}", _release),
        "by itself" if by_itself else "",
        fields.text("reason", "— {}"),
    ]


def _promoted(fields: _Taken) -> list[str]:
    """A rejected snapshot that is live under a number of its own; what it was rejected for is overruled."""
    return [
        fields.text("release", shown=_release),
        fields.text("snapshot", "(rejected as {})", _release),
        fields.text("reason", "— {}"),
        fields.text("overruled", "overruling: {}"),
    ]


def _steps(fields: _Taken) -> list[str]:
    """How long each took; nothing of those that a rollback does without."""
    taken = ((name, fields.raw(f"{name}_s")) for name in ("settle", "stage", "verify"))
    return [f"{name} {seconds(value)}" for name, value in taken if value]


def _reasoned(fields: _Taken) -> list[str]:
    """What happened to what, and why."""
    fields.raw("kind")  # the event says it
    forced = fields.raw("forced") is True
    return [
        fields.text("release", shown=_release),
        fields.text("snapshot", shown=_release),
        fields.text("trigger"),
        "forced" if forced else "",
        fields.text("status"),
        fields.text("reason", "— {}"),
        # often one and the same
        *dict.fromkeys(fields.text(key, "({})") for key in ("where", "path", "source")),
        fields.text("files", "{} files"),
        fields.text("bytes", shown=size),
        fields.text("hint", "→ {}"),
    ]


def _notified(fields: _Taken) -> list[str]:
    """Who was told of a release."""
    tries = fields.raw("tries")
    required = fields.raw("required") is True
    return [
        fields.text("release", shown=_release),
        fields.text("kind"),
        fields.text("target"),
        "required" if required else "",
        f"in {tries} tries" if isinstance(tries, int) and tries > 1 else "",
        fields.text("seconds", shown=seconds),
        fields.text("reason", "— {}"),
    ]


def _refused(fields: _Taken) -> list[str]:
    """All that is wrong with a configuration; one problem is its own reason."""
    problems = _listed(fields.raw("problems"))
    return [fields.text("reason", "— {}"), "; ".join(map(_shown, problems)) if len(problems) > 1 else ""]


def _pruned(fields: _Taken) -> list[str]:
    return [
        fields.text("release", shown=_release),
        fields.text("bytes", "freed {}", size),
        fields.text("reason", "— {}"),
    ]


def _dropped(fields: _Taken) -> list[str]:
    return [
        fields.text("dropped", "{} lines lost"),
        fields.text("output", "on the {}"),
        fields.text("reason", "— {}"),
    ]


def _disk(fields: _Taken) -> list[str]:
    return [
        fields.text("free", "{} free", size),
        fields.text("needed", "{} needed", size),
        fields.text("min_free", "of {} to keep free", size),
        fields.text("reason", "— {}"),
    ]


_SENTENCES: Final[Mapping[str, Callable[[_Taken], list[str]]]] = {
    "release.published": _overwrite,
    "release.overwrite": _overwrite,
    "release.rolled_back": _went_back,
    "release.promoted": _promoted,
    "release.recovered": _overwrite,
    "release.pruned": _pruned,
    "log.dropped": _dropped,
    "notification.done": _notified,
    "notification.failed": _notified,
    "disk.low": _disk,
    "daemon.reload_refused": _refused,
    **dict.fromkeys(
        (
            "checkpoint.changed",
            "checkpoint.torn",
            "checkpoint.vanished",
            "snapshot.started",
            "snapshot.unchanged",
            "snapshot.rejected",
            "snapshot.failed",
            "health.passed",
            "health.failed",
            "release.corrupted",
            "release.rollback_failed",
            "release.pinned",
            "release.unpinned",
            "watch.started",
            "watch.degraded",
            "watch.overflowed",
            "watch.lost",
            "watch.restored",
            "schedule.missed",
        ),
        _reasoned,
    ),
}
# Digests and places: kept in the log for machines, noise to people.
_OF_RELEASES: Final = frozenset(
    {
        "model_sha256",
        "previous_model_sha256",
        "content_sha256",
        "previous_content_sha256",
        "history_seq",
        "history_sha256",
        "source",
        "component",
        "metrics_may_be_stale",
        "verified",
        "gates",
        "follow_up",
        "probation",
        "promoted",  # release.promoted says it
    }
)
_HIDDEN: Final[Mapping[str, frozenset[str]]] = dict.fromkeys(
    (
        "release.published",
        "release.overwrite",
        "release.rolled_back",
        "release.promoted",
        "release.recovered",
        "release.pruned",
    ),
    _OF_RELEASES,
) | {"snapshot.rejected": frozenset({"gates", "level"})}


def _shown(value: Any) -> str:  # one return for each kind of value
    """A value as text for a terminal, on one line."""
    if isinstance(value, str):
        return neutralise(value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        if "type" in value and "message" in value:  # an exception
            cause = f" ← {_shown(value['cause'])}" if value.get("cause") else ""
            return f"{_shown(value['type'])}: {_shown(value['message'])}{cause}"
        return "{" + ", ".join(f"{_shown(key)}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value) if value else "none"
    return neutralise(str(value))


def _release(value: Any) -> str:
    """The sequence number is enough for people; commands take it as well."""
    matched = _RELEASE_ID.match(value) if isinstance(value, str) else None
    return matched.group(1) if matched else _shown(value)


def _metrics(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _shown(value)
    scores = [
        f"{_shown(key)} {item:.3f}"
        for key, item in value.items()
        if isinstance(item, float) and isinstance(key, str) and key.endswith("_f")
    ]
    return ", ".join(scores)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _local_time(value: Any, zone: tzinfo | None) -> str:
    try:
        moment = datetime.fromisoformat(value).astimezone(zone)
    except (TypeError, ValueError, OverflowError):
        return "" if value is None else _shown(value)
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


def _escaped(matched: re.Match[str]) -> str:
    code = ord(matched.group())
    named = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}.get(code)
    if named:
        return named
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _laid_out(pieces: list[tuple[str, str]], style: Style, *, uncut: bool) -> str:
    room = None if uncut else style.width
    line: list[str] = []
    for text, colour in pieces:
        gap = 1 if line else 0
        shown = text
        if room is not None:
            room -= gap
            shown = _cut(text, room)
            room -= columns(shown)
        if shown:
            line.append(f"\x1b[{colour}m{shown}\x1b[0m" if style.colour and colour else shown)
        if shown != text:
            break
    return " ".join(line)


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(character) for character in text)


def _columns_of(character: str) -> int:
    import unicodedata  # noqa: PLC0415  # 0.7 MB, for a terminal

    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, room: int) -> str:
    if columns(text) <= room:
        return text
    kept = []
    room -= 1  # for the ellipsis
    for character in text:
        room -= _columns_of(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept) + "…" if kept or room >= 0 else ""
