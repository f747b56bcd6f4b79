"""Showing the structured log to people, and on request to programs."""

from __future__ import annotations

import contextlib
import os
import re
import select
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from spancat_daemon.cli.output import say
from spancat_daemon.errors import SpancatDaemonError, UsageError
from spancat_daemon.observe.follow import LogFollower
from spancat_daemon.observe.render import Style, escape_for_json, render_event, render_malformed, style_for

if TYPE_CHECKING:
    from spancat_daemon.config.model import Configuration

_POLL_S: Final = 0.25
_JOURNAL_PREFIX: Final = re.compile(rb"<[0-7]>")


def show_logs(
    configuration: Configuration | None,
    *,
    follow: bool,
    rules: Sequence[str],
    events: Sequence[str],
    as_json: bool,
    lines: int | None,
    source: str | None = None,
) -> None:
    """Prints the log, oldest line first, to standard output.

    Ends quietly at Ctrl-C and when nobody reads the output any more.

    Args:
        configuration: its ``[log] file`` is what is shown; not needed with a `source`.
        follow: go on with what is logged from now on, through rotations, also when there is no file yet.
        rules: only events of these rules; ``products`` stands for ``products/run-1`` too. Empty: all.
        events: only these events; patterns such as ``release.*`` are understood. Empty: all.
        as_json: one JSON object a line instead of sentences; a line that is none as event ``log.malformed``.
        lines: how many of the last matching lines; None: all.
        source: another log file, or ``-`` for standard input. None: the configured file, and standard input
            when none is configured and something is piped into it.

    Raises:
        UsageError: there is no log file to show.
        SpancatDaemonError: it can't be read.
    """
    selection = _Selection(tuple(rules), tuple(events))
    style = style_for(sys.stdout)
    form = _json_form if as_json else lambda line: _human_form(line, style)
    path = _chosen(configuration, source)
    try:
        if path is None:
            _show_stream(sys.stdin.buffer, selection, form, lines, follow=follow)
        else:
            _show_file(path, selection, form, lines, follow=follow)
        _flush()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # Python would complain once more when it flushes standard output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise SpancatDaemonError(
            f"the log can't be read: {error.strerror or error}", where=str(path or "standard input")
        ) from error


@dataclass(frozen=True, slots=True)
class _Selection:
    """Which lines are wanted. What is no event is shown only where all are."""

    rules: tuple[str, ...]
    events: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.rules or self.events)

    def takes(self, line: _Line) -> bool:
        if line.fields is None:
            return not self.rules and not self.events
        rule = line.fields.get("rule")
        if self.rules and not any(rule == one or str(rule).startswith(f"{one}/") for one in self.rules):
            return False
        event = str(line.fields.get("event", ""))
        return not self.events or any(event == one or fnmatchcase(event, one) for one in self.events)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the log and the event that it is; None when it is none."""

    raw: bytes
    fields: dict[str, Any] | None

    @classmethod
    def parse(cls, raw: bytes) -> _Line:
        raw = (
            _JOURNAL_PREFIX.sub(b"", raw.rstrip(b"\r\n"), count=1) if raw[:1] == b"<" else raw.rstrip(b"\r\n")
        )
        try:
            fields = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return cls(raw, None)
        return cls(raw, fields if isinstance(fields, dict) else None)


_Form = Callable[[_Line], str]


def _json_form(line: _Line) -> str:
    if line.fields is not None:
        return escape_for_json(line.raw.decode("utf-8", "replace"))
    malformed = {"event": "log.malformed", "line": line.raw.decode("utf-8", "backslashreplace")}
    return escape_for_json(orjson.dumps(malformed).decode())


def _human_form(line: _Line, style: Style) -> str:
    return render_malformed(line.raw, style) if line.fields is None else render_event(line.fields, style)


def _chosen(configuration: Configuration | None, source: str | None) -> Path | None:
    """The file to show; None for standard input."""
    if source is not None:
        return None if source == "-" else Path(source)
    if configuration is None:
        raise TypeError("neither a configuration nor a source")
    if configuration.log.file is not None:
        return configuration.log.file
    if _is_piped():
        return None
    raise UsageError(
        "there is no log file to show",
        where=str(configuration.path),
        hint='set file = "…" under [log], or show the journal: '
        "journalctl -u spancat-daemon -o cat | spancat-daemon logs -",
    )


def _is_piped() -> bool:
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _show_stream(
    stream: Iterable[bytes], selection: _Selection, form: _Form, count: int | None, *, follow: bool
) -> None:
    wanted = (line for line in map(_Line.parse, stream) if line.raw and selection.takes(line))
    for line in wanted if follow or count is None else deque(wanted, maxlen=count):
        _print(form(line), now=follow)


def _show_file(path: Path, selection: _Selection, form: _Form, count: int | None, *, follow: bool) -> None:
    if not follow and not path.exists():
        raise UsageError(
            "the log file is not there",
            where=str(path),
            hint="is the daemon running with this configuration?",
        )
    follower = LogFollower(path)
    try:
        before = list(islice(_matching(follower.start_at_end(), selection), count))
        for line in reversed(before):
            _print(form(line))
        if not follow:
            last = list(_matching(follower.unfinished(), selection) if count != 0 else ())
            for line in last:
                _print(form(line))
            if not before and not last and count != 0:
                say(f"{path}: nothing in it is of that rule and event" if selection else f"{path}: empty")
            return
        _flush()
        while not _reader_is_gone():
            for line in _matching(follower.poll(), selection):
                _print(form(line))
            _flush()
    finally:
        follower.close()


def _matching(lines: Iterable[bytes], selection: _Selection) -> Iterator[_Line]:
    return (line for line in map(_Line.parse, lines) if selection.takes(line))


def _print(text: str, *, now: bool = False) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    with _writing():
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    if now:
        _flush()


def _flush() -> None:
    with _writing():
        sys.stdout.flush()


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Tells what can't be written from what can't be read."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SpancatDaemonError(f"the output can't be written: {error.strerror or error}") from error


def _reader_is_gone() -> bool:
    """Waits a quarter of a second; whether the output's reader (``| head``) went away meanwhile.

    Without this a follower of a quiet log would stay until the next event.
    """
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):  # a captured stream has no descriptor
        poll.register(sys.stdout.fileno(), 0)
    return any(happened & (select.POLLERR | select.POLLHUP) for _, happened in poll.poll(_POLL_S * 1000))
