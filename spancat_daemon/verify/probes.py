r"""Probes: a file of texts and the spans that they must, or must not, give.

JSONL, an object a line, in UTF-8::

    {"text": "Acme Corp is in Köln.", "spans": [[0, 9, "ORG"]], "absent": [[16, 20, "ORG"]]}

`spans` are those that must be given, whatever else is; an empty list says that there must be none at all.
`absent` are those that must not be given. Offsets count characters, the end is not included. A file in which
no line has either asks for no more than a single span in all its texts together.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.config.problems import nearest
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.verify.verdict import Probe, Span

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

MOST_BYTES: Final = 16 << 20

_MOST_PROBLEMS: Final = 100
_KEYS: Final = ("text", "spans", "absent")
_LISTS: Final = ("spans", "absent")
_SHAPE: Final = '[start, end, "LABEL"]'
_EXAMPLE: Final = '{"text": "Acme is here.", "spans": [[0, 4, "ORG"]]}'
_BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_JSON: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class ProbeProblem:
    """One thing that is wrong, and its place.

    Attributes:
        line: counted from 1, which also stands for the file as a whole.
        column: counted from 1, in characters.
        message: what is wrong, in one line.
        text: the line; empty where there is none to show.
    """

    line: int
    column: int
    message: str
    text: str = ""


class BadProbes(SpancatDaemonError):  # noqa: N818  # a verdict on a file
    """A file of probes that can't be used.

    Attributes:
        problems: in the order of the file, at least one; no more than the first hundred.
    """

    def __init__(self, path: Path, problems: Iterable[ProbeProblem]) -> None:
        self.problems: tuple[ProbeProblem, ...] = tuple(problems)
        first = self.problems[0]
        more = len(self.problems) - 1
        others = f" (and {more} more problem{'s' * (more > 1)})" if more else ""
        place = f"{path}:{first.line}:{first.column}"
        super().__init__(f"{first.message}{others}", where=place, hint=f"each line is an object: {_EXAMPLE}")


def read_probes(path: Path) -> tuple[Probe, ...]:
    """Return the probes in a file, at least one.

    Raises:
        BadProbes: it can't be read, or any line is not a probe; tells all that is wrong with it.
    """
    probes = []
    problems: list[ProbeProblem] = []
    for number, raw in enumerate(_read(path).removeprefix(_BOM).split(b"\n"), 1):
        found = _parse(raw.removesuffix(b"\r"), number)
        if isinstance(found, Probe):
            probes.append(found)
        else:
            problems += found
        if len(problems) >= _MOST_PROBLEMS:
            break
    if problems:
        raise BadProbes(path, problems[:_MOST_PROBLEMS])
    if not probes:
        raise _whole_file(path, "holds no probes")
    return tuple(probes)


def unknown_labels(probes: Iterable[Probe], labels: Collection[str]) -> list[ProbeProblem]:
    """Return a problem for every label of a probe that a model does not have, each once a line."""
    known = tuple(labels)
    missing = {
        (probe.line, span.label)
        for probe in probes
        for span in (*(probe.spans or ()), *probe.absent)
        if span.label not in labels
    }
    shown = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
    return [
        ProbeProblem(line, 1, f"{label!r} is not a label of the model ({shown}){nearest(label, known)}")
        for line, label in sorted(missing)
    ]


def _read(path: Path) -> bytes:
    try:
        # Not to wait for whoever would write into a pipe of that name.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise _whole_file(path, "is not a file")
            with os.fdopen(number, "rb", closefd=False) as file:
                content = file.read(MOST_BYTES + 1)
        finally:
            os.close(number)
    except OSError as error:
        raise _whole_file(path, f"can't be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in its name
        raise _whole_file(path, f"can't be read: {error}") from error
    if len(content) > MOST_BYTES:
        raise _whole_file(path, f"is larger than {MOST_BYTES >> 20} MiB")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadProbes(path, [ProbeProblem(1, 1, "is UTF-16; it must be UTF-8")])
    return content


def _whole_file(path: Path, message: str) -> BadProbes:
    return BadProbes(path, [ProbeProblem(1, 1, message)])


def _parse(raw: bytes, number: int) -> Probe | list[ProbeProblem]:
    """Return the probe in a line, or what is wrong with it: nothing if the line is blank."""
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        message = f"not UTF-8: byte 0x{raw[error.start]:02x}"
        return [ProbeProblem(number, len(before) + 1, message, raw.decode(errors="replace"))]
    if not line.strip():
        return []
    try:
        found = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return [ProbeProblem(number, error.colno, f"not JSON: {error.msg}", line)]
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        return [ProbeProblem(number, 1, f"not JSON that can be read: {error}", line)]
    if not isinstance(found, dict):
        return [ProbeProblem(number, _after_space(line, 0) + 1, f"{_kind(found)}, not an object", line)]
    wrong = itertools.islice(_check(found), _MOST_PROBLEMS)
    problems = [ProbeProblem(number, _column(line, *place), message, line) for place, message in wrong]
    problems.sort(key=lambda problem: problem.column)
    return problems or _probe(found, number)


class _Twice:
    """Stands for the value of a key that an object holds more than once."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                found[key] = _Twice()
            seen.add(key)
    return found


# Where a problem is: a key of the object, and which item of its list; None: the key itself, if it is there.
_Place = tuple[str, int | None]


def _check(found: dict[str, Any]) -> Iterator[tuple[_Place, str]]:
    """Yield what is wrong with the object of a line, in no particular order."""
    for key, value in found.items():
        if key not in _KEYS:
            yield (key, None), f"unknown key {key!r}{nearest(key, _KEYS)}"
        elif isinstance(value, _Twice):
            yield (key, None), f"the key {key!r} is there more than once"
    text = found.get("text")
    if "text" not in found:
        yield ("", None), "'text' is missing"
    elif not isinstance(text, str):
        if not isinstance(text, _Twice):
            yield ("text", None), f"'text' must be a string, not {_kind(text)}"
    elif not _encodable(text):
        yield ("text", None), "'text' holds half of a surrogate pair, which is no character"
    for key in _LISTS:
        yield from _check_list(key, found.get(key, []), text if isinstance(text, str) else None)
    yield from _check_contradictions(found)


def _check_list(key: str, spans: Any, text: str | None) -> Iterator[tuple[_Place, str]]:
    if isinstance(spans, list) and spans and not _problem_of(spans, text):
        yield (key, None), f"{key!r} must be a list of {_SHAPE}, not a single one: put [ ] around it"
    elif isinstance(spans, list):
        for index, span in enumerate(spans):
            problem = _problem_of(span, text)
            if problem:
                yield (key, index), problem
    elif not isinstance(spans, _Twice):
        yield (key, None), f"{key!r} must be a list of {_SHAPE}, not {_kind(spans)}"


def _problem_of(span: Any, text: str | None) -> str:
    """Return what is wrong with a span; empty if nothing is."""
    if not isinstance(span, list) or len(span) != 3:
        shown = f"a list of {len(span)}" if isinstance(span, list) else _kind(span)
        return f"a span must be {_SHAPE}, not {shown}"
    start, end, label = span
    if not (_whole(start) and _whole(end)):
        return f"a span's start and end must be whole numbers: {_SHAPE}"
    if not isinstance(label, str) or not label or not _encodable(label):
        return f"a span's label must be a string that isn't empty: {_SHAPE}"
    if start < 0:
        return f"a span can't start at {start}: the first character is 0"
    if start >= end:
        return f"a span must end after it starts, not at {end} after {start}"
    if text is not None and end > len(text):
        return f"a span can't end at {end}: the text has {len(text)} characters"
    return ""


def _check_contradictions(found: dict[str, Any]) -> Iterator[tuple[_Place, str]]:
    spans, absent = (found.get(key) for key in _LISTS)
    if isinstance(spans, list) and isinstance(absent, list):
        given = {tuple(span) for span in spans if not _problem_of(span, None)}
        for index, span in enumerate(absent):
            if not _problem_of(span, None) and tuple(span) in given:
                yield ("absent", index), "the same span can't be in 'spans' and in 'absent'"


def _probe(found: dict[str, Any], number: int) -> Probe:
    spans = tuple(Span(*span) for span in found["spans"]) if "spans" in found else None
    return Probe(found["text"], spans, tuple(Span(*span) for span in found.get("absent", ())), number)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    for kind, name in ((dict, "an object"), (list, "a list"), (str, "a string")):
        if isinstance(value, kind):
            return name
    return "a number"


def _column(line: str, key: str, index: int | None) -> int:
    """Return where a key stands in a line that is valid JSON, its last occurrence; or an item of its list."""
    start = _after_space(line, 0)
    at = start
    for name, key_at, value_at in _members(line, start):
        if name == key:
            items = _items(line, value_at) if index is not None else ()
            at = next(itertools.islice(items, index, None), key_at)
    return at + 1


def _members(line: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield the keys of the object that starts there, with where each and its value stand."""
    at = _after_space(line, start + 1)
    while line[at] != "}":
        key, end = _JSON.raw_decode(line, at)
        value_at = _after_space(line, _after_space(line, end) + 1)
        yield key, at, value_at
        at = _after_item(line, value_at)


def _items(line: str, start: int) -> Iterator[int]:
    """Yield where the items of the list that starts there stand."""
    at = _after_space(line, start + 1)
    while line[at] != "]":
        yield at
        at = _after_item(line, at)


def _after_item(line: str, start: int) -> int:
    _, end = _JSON.raw_decode(line, start)
    at = _after_space(line, end)
    return _after_space(line, at + 1) if line[at] == "," else at


def _after_space(line: str, at: int) -> int:
    found = _SPACE.match(line, at)
    return found.end() if found else at
