"""Text fit for a line of a log."""

from __future__ import annotations

_MOST_CHARACTERS = 1000


def one_line(text: object) -> str:
    """Return text without line ends and not too long."""
    line = " ".join(str(text).split())
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 1] + "…"


def reason_for(error: BaseException) -> str:
    """Return an error's kind and what it says."""
    said = one_line(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
