"""What is wrong with a daemon.toml, shown so that it is found and put right at first sight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spancat_daemon.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spancat_daemon.config.places import Path

_WIDEST: Final = 100  # columns of a shown line; longer ones are cut around the caret


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at a key, before it is known where that stands.

    Attributes:
        path: the key it is shown at.
        message: one line: what is wrong and what to do.
        at_key: shown at the key itself, not at its value.
    """

    path: Path
    message: str
    at_key: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong, and its place.

    Attributes:
        line: counted from 1.
        column: counted from 1, in characters.
        message: what is wrong and what to do, in one line.
        text: the offending line of the file; ``""`` where there is none to show.
        file: the file as the user named it.
    """

    line: int
    column: int
    message: str
    text: str
    file: str

    def __str__(self) -> str:
        headline = f"{self.file}:{self.line}:{self.column}: {self.message}"
        if not self.text.strip():
            return headline
        shown, caret = _excerpt(self.text, self.column - 1)
        return f"{headline}\n    {shown}\n    {caret}"


class ConfigurationError(UsageError):
    """A daemon.toml that can't be carried out; its text shows all that is wrong with it.

    Attributes:
        problems: file by file, in the order of each; at least one.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(
            sorted(set(problems), key=lambda problem: (problem.file, problem))
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))


def nearest(name: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` if one of the known names is close, else ``""``."""
    from difflib import get_close_matches  # noqa: PLC0415  # only where something is wrong

    close = get_close_matches(name.lower(), known, n=1, cutoff=0.6) or get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(known: Sequence[str]) -> str:
    """Names as a reader wants them: ``'a', 'b' or 'c'``."""
    return any_of([repr(name) for name in known])


def any_of(names: Sequence[str]) -> str:
    """The same of names that need no quotes: ``[log] or [watch.verify]``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _excerpt(text: str, index: int) -> tuple[str, str]:
    """The line, cut to a readable width, and the caret that stands under the character at an index."""
    index = min(index, len(text))
    start = 0 if len(text) <= _WIDEST else max(0, min(index - _WIDEST // 2, len(text) - _WIDEST))
    head = "…" if start else ""
    tail = "…" if start + _WIDEST < len(text) else ""
    window = "".join(_visible(character) for character in text[start : start + _WIDEST])
    padding = "".join(_blank(character) for character in window[: index - start])
    return f"{head}{window}{tail}".rstrip(), f"{' ' * len(head)}{padding}^"


def _visible(character: str) -> str:
    """Control characters, and those that turn the direction of text, must not reach a terminal."""
    import unicodedata  # noqa: PLC0415  # 0.7 MB, for a configuration that is wrong

    hidden = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and character != "\t"
    return "\N{REPLACEMENT CHARACTER}" if hidden else character


def _blank(character: str) -> str:
    if character == "\t":
        return "\t"
    import unicodedata  # noqa: PLC0415  # as above

    if unicodedata.combining(character):
        return ""
    return "  " if unicodedata.east_asian_width(character) in "WF" else " "
