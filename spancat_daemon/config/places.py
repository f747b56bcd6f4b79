"""Where each key, value and table of a TOML text stands.

``tomllib`` says what a text means but not where; this says where, and relies on ``tomllib`` having accepted
the text before: it checks no syntax.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final

Path = tuple[str | int, ...]
"""Keys and indices from the root: ``("watch", 0, "keep", "last")``."""

DEEPEST: Final = 16
"""Levels of arrays and tables that are followed; a configuration has four."""

_SPACE: Final = re.compile(r"[ \t]*")
_GAP: Final = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN_VALUE: Final = re.compile(r"[^,\]}#\n]*")
_STRINGS: Final = (
    re.compile(r'"""(?:\\[\s\S]|[^\\])*?"""(?:"{0,2})'),
    re.compile(r"'''[\s\S]*?'''(?:'{0,2})"),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
)


# More parts than a key can have, and more than texts have words with nothing but dots between them.
_LONG_KEY: Final = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""")


class TooDeep(ValueError):  # noqa: N818  # describes the text, like the ValueError it is
    """Arrays or tables in each other beyond ``DEEPEST`` levels.

    Attributes:
        place: where the limit was passed.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        super().__init__(f"arrays or tables are nested more than {DEEPEST} levels deep")


@dataclass(frozen=True, slots=True)
class Place:
    """A line and a column, both counted from 1; columns in characters."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets of a key and of its value.

    A table's header is its value; a table that is only implied by a longer name has no extent of its own, so
    its value is its key.
    """

    key: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Places:
    """The spans of a text, by path.

    Attributes:
        text: the text they are offsets into, its line ends as single newlines.
        spans: of every key, array element and table.
    """

    text: str
    spans: dict[Path, Span] = field(default_factory=dict)
    _line_starts: list[int] = field(default_factory=list)

    def key(self, path: Path) -> Place:
        """Where the key, or the array element, stands; of an unknown path, where its parent does."""
        span = self._nearest(path)
        return self.at(span.key if span else 0)

    def value(self, path: Path) -> Place:
        """Where its value begins; of an unknown path, where its parent's does."""
        span = self._nearest(path)
        return self.at(span.start if span else 0)

    def raw(self, path: Path) -> str:
        """The value as written, or ``""`` for an unknown path."""
        span = self.spans.get(path)
        return self.text[span.start : span.end] if span else ""

    def at(self, offset: int) -> Place:
        """The place of an offset into the text."""
        line = bisect_right(self._line_starts, offset)
        return Place(line, offset - self._line_starts[line - 1] + 1)

    def line(self, number: int) -> str:
        """The text of a line, counted from 1, without its end; ``""`` beyond the last."""
        if number > len(self._line_starts):
            return ""
        start = self._line_starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start:] if end < 0 else self.text[start:end]

    def check_keys(self) -> None:
        """Refuse dotted keys of many parts: tomllib needs time and memory with the square of their number.

        Raises:
            TooDeep: there is one.
        """
        if found := _LONG_KEY.search(self.text):
            raise TooDeep(self.at(found.start()))

    @property
    def last_line(self) -> int:
        """The number of the last line that holds something, at least 1."""
        return self.text.rstrip().count("\n") + 1

    def _nearest(self, path: Path) -> Span | None:
        while path and path not in self.spans:
            path = path[:-1]
        return self.spans.get(path)


def unlocated(text: str) -> Places:
    """The lines of a text without any spans: enough to show a syntax error."""
    text = text.replace("\r\n", "\n")
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    return Places(text, {}, starts)


def locate(text: str) -> Places:
    """Finds every key, value and table of a text that ``tomllib.loads`` accepts.

    Raises:
        TooDeep: it is nested beyond what a configuration can need.
    """
    places = unlocated(text)
    _Scanner(places).document()
    return places


class _Scanner:
    """One pass over the text; each method begins at ``self.position`` and leaves it behind what it read."""

    def __init__(self, places: Places) -> None:
        self.text = places.text
        self.places = places
        self.spans = places.spans
        self.position = 0
        self.tables: dict[Path, int] = {}  # how many [[…]] of each array of tables were seen

    def document(self) -> None:
        table: Path = ()
        self.skip(_GAP)
        while self.position < len(self.text):
            if self.text[self.position] == "[":
                table = self.header()
            else:
                self.key_value(table)
            self.skip(_GAP)

    def header(self) -> Path:
        start = self.position
        brackets = 2 if self.text.startswith("[[", start) else 1
        self.position += brackets
        path: Path = ()
        parts = self.key()
        for number, (part, offset) in enumerate(parts, start=1):
            path = self.deeper(path, part, offset)
            if number < len(parts):
                self.spans.setdefault(path, Span(offset, offset, offset))
                if path in self.tables:
                    path = (*path, self.tables[path] - 1)
        self.position += brackets
        span = Span(parts[-1][1], start, self.position)
        if brackets == 2:
            index = self.tables.get(path, 0)
            self.tables[path] = index + 1
            self.spans.setdefault(path, span)
            path = (*path, index)
        # a header may follow what implied its table: [a.b] and then [a]
        self.spans[path] = span
        return path

    def key_value(self, table: Path) -> None:
        path = table
        parts = self.key()
        for number, (part, offset) in enumerate(parts, start=1):
            path = self.deeper(path, part, offset)
            if number < len(parts):
                self.spans.setdefault(path, Span(offset, offset, offset))
        self.position += 1  # =
        self.skip(_SPACE)
        self.value(path, key=parts[-1][1])

    def key(self) -> list[tuple[str, int]]:
        """The parts of a dotted key, each with its offset; stops at what follows: ``=`` or ``]``."""
        parts: list[tuple[str, int]] = []
        while True:
            self.skip(_SPACE)
            start = self.position
            bare = _BARE_KEY.match(self.text, start)
            if bare:
                self.position = bare.end()
                parts.append((bare[0], start))
            else:
                self.string()
                raw = self.text[start : self.position]
                parts.append((tomllib.loads(f"key = {raw}")["key"], start))
            self.skip(_SPACE)
            if not self.text.startswith(".", self.position):
                return parts
            self.position += 1

    def value(self, path: Path, key: int) -> None:
        start = self.position
        opening = self.text[start]
        if opening in "\"'":
            self.string()
        elif opening == "[":
            self.array(path)
        elif opening == "{":
            self.inline_table(path)
        else:
            plain = _PLAIN_VALUE.match(self.text, start)
            self.position = start + len(plain[0].rstrip() if plain else "")
        self.spans[path] = Span(key, start, self.position)

    def string(self) -> None:
        for pattern in _STRINGS:
            match = pattern.match(self.text, self.position)
            if match:
                self.position = match.end()
                return

    def array(self, path: Path) -> None:
        self.position += 1
        self.skip(_GAP)
        index = 0
        while self.text[self.position] != "]":
            self.value(self.deeper(path, index, self.position), key=self.position)
            self.skip(_GAP)
            if self.text[self.position] == ",":
                self.position += 1
                self.skip(_GAP)
            index += 1
        self.position += 1

    def inline_table(self, path: Path) -> None:
        self.position += 1
        self.skip(_GAP)
        while self.text[self.position] != "}":
            self.key_value(path)
            self.skip(_GAP)
            if self.text[self.position] == ",":
                self.position += 1
                self.skip(_GAP)
        self.position += 1

    def deeper(self, path: Path, part: str | int, offset: int) -> Path:
        if len(path) >= DEEPEST:
            raise TooDeep(self.places.at(offset))
        return (*path, part)

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.position)
        if match:
            self.position = match.end()
