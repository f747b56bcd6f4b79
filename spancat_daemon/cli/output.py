"""Data on standard output, messages on standard error; nothing from a disk reaches a terminal raw."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_NARROWEST = 12  # columns that the last column of a table can be folded to


def say(message: str, *, error: bool = False) -> None:
    """Prints a message for the user on standard error, with the program's name.

    Args:
        message: one or several lines.
        error: the program ends for it; the journal then files it as an error.
    """
    from spancat_daemon.observe.systemd import is_journal_stream  # noqa: PLC0415  # see _printable

    priority = "<3>" if error and is_journal_stream(2) else ""
    try:
        first, *rest = (_printable(line, sys.stderr) for line in message.split("\n"))
        lines = (f"spancat-daemon: {first}", *rest)
        sys.stderr.write("".join(f"{priority}{line}\n" for line in lines))
    except OSError:  # nobody reads it
        pass


def data(line: str = "") -> None:
    """Prints a line of data on standard output."""
    sys.stdout.write(f"{_printable(line, sys.stdout)}\n")


def print_json(value: Any) -> None:
    r"""Prints any value as indented JSON; paths as text, bytes of names that are not UTF-8 as ``\xNN``."""
    import orjson  # noqa: PLC0415  # only where JSON is asked for

    from spancat_daemon.observe.jsonline import dumps  # noqa: PLC0415  # as above

    sys.stdout.flush()
    sys.stdout.buffer.write(orjson.dumps(orjson.loads(dumps(value)), option=orjson.OPT_INDENT_2) + b"\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, spare: Sequence[str] = ()) -> None:
    """Prints rows below a heading: ruled on a terminal, else aligned by spaces, for people and ``awk``.

    On a terminal that is too narrow for that, without the spare columns, as many as it takes; if that is not
    enough, a value a line.

    A column whose heading starts with ``>`` is aligned to the right.
    """
    from spancat_daemon.observe.render import columns as display_width  # noqa: PLC0415  # see _printable

    lines = [
        [column.removeprefix(">") for column in columns],
        *([_printable(cell, sys.stdout) for cell in row] for row in rows),
    ]
    widths = [max(display_width(line[position]) for line in lines) for position in range(len(columns))]
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _ruled(columns, lines, widths, spare)
        return
    for line in lines:
        cells = []
        for column, cell, width in zip(columns, line, widths, strict=True):
            padding = " " * (width - display_width(cell))
            cells.append(padding + cell if column.startswith(">") else cell + padding)
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _ruled(
    columns: Sequence[str], lines: Sequence[Sequence[str]], widths: Sequence[int], spare: Sequence[str]
) -> None:
    from rich import box  # noqa: PLC0415  # only on a terminal
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    terminal = Console()
    everything = lines
    for unneeded in ("", *spare):
        if unneeded:
            kept = [place for place, title in enumerate(lines[0]) if title != unneeded]
            columns = [columns[place] for place in kept]
            widths = [widths[place] for place in kept]
            lines = [[line[place] for place in kept] for line in lines]
        if _taken(widths) + min(widths[-1], _NARROWEST) <= terminal.width:
            break
    else:
        _stacked(everything[0], everything[1:])
        return
    titles, *rows = lines
    # Only the last column folds; ids are never cut, so that they can be copied
    *fixed, last = widths
    taken = _taken(widths)
    last = min(last, max(terminal.width - taken, _NARROWEST))
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    for column, title, width in zip(columns, titles, (*fixed, last), strict=True):
        grid.add_column(
            title, justify="right" if column.startswith(">") else "left", width=width, overflow="fold"
        )
    for row in rows:
        # Text, because a string would be read as markup
        grid.add_row(*map(Text, row), style="bold green" if row[0] == "*" else None)
    Console(width=max(terminal.width, taken + last)).print(grid)


def _taken(widths: Sequence[int]) -> int:
    """Columns of the terminal that a table takes besides its last column."""
    return sum(widths[:-1]) + 2 * len(widths)


def _stacked(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """For a terminal that is too narrow for the table: each row as lines, a value in each."""
    width = max(map(len, titles))
    for row in rows:
        named = [(title, cell) for title, cell in zip(titles, row, strict=True) if cell]
        marks = [cell for title, cell in named if not title]
        (_, first), *rest = [(title, cell) for title, cell in named if title]
        sys.stdout.write(" ".join([*marks, first]) + "\n")
        for title, cell in rest:
            sys.stdout.write(f"  {title.ljust(width)}  {cell}\n")


def _printable(text: str, stream: Any) -> str:
    """The text without control characters, and in characters that the stream can take."""
    from spancat_daemon.observe.render import neutralise  # noqa: PLC0415  # nothing else of it is needed early

    encoding = stream.encoding or "utf-8"
    return neutralise(text).encode(encoding, "backslashreplace").decode(encoding)
