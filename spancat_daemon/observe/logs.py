"""The structured log: one event a line, in the same form whoever says it.

structlog binds and filters; the rest is here, because its ready-made parts raise on a full disk, on a
closed pipe and on file names that are not UTF-8, print local variables with tracebacks, and block on a
stopped reader.
A call costs about 15 µs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeAlias, cast

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

from spancat_daemon.observe import jsonline, systemd
from spancat_daemon.observe.outputs import Counted, FileOutput, Output, PythonStreamOutput, StreamOutput
from spancat_daemon.observe.render import Style, render_event, style_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping

    from spancat_daemon.config.model import LogSettings

Logger: TypeAlias = FilteringBoundLogger
"""What ``get_logger`` returns: ``info``, … take an event's name and its fields; ``bind`` adds fields."""

_JOURNAL_PRIORITIES: Final = {
    "critical": b"<2>",
    "error": b"<3>",
    "warning": b"<4>",
    "info": b"<6>",
    "debug": b"<7>",
}
# A thread that is stuck in a write holds the lock for at most the stream's deadline, unless a disk is stuck.
_LOCK_TIMEOUT_S = 1.0
_MOST_WAITING = 1000
_HISTORY_TAIL_BYTES = 4 << 20
_FIRST_FIELDS: Final = ("timestamp", "level", "event", "rule")


class LogOutput:
    """Where the log goes now. Made by ``configure``; all methods are safe to call from any thread."""

    def __init__(self, settings: LogSettings, stream: TextIO) -> None:
        self._lock = threading.RLock()
        self._writing = False
        self._waiting: deque[tuple[dict[str, Any], bytes]] = deque()
        self._closed = False
        self._missed = 0  # lines lost because too many wait for the lock
        # The file first: it is what can be refused.
        self._file = FileOutput(settings.file) if settings.file is not None else None
        self._file_lines = Counted(self._file) if self._file is not None else None
        output, descriptor = _stream_output(stream)
        self._stream_lines = Counted(output)
        self._to_journal = descriptor is not None and systemd.is_journal_stream(descriptor)
        wants_console = settings.format == "console" or (settings.format == "auto" and _is_terminal(stream))
        self._style: Style | None = style_for(stream) if wants_console else None

    @property
    def dropped(self) -> int:
        """How many lines are lost on the stream and not yet told of, plus those on the file."""
        of_file = self._file_lines.dropped if self._file_lines is not None else 0
        return self._stream_lines.dropped + of_file + self._missed

    def emit(self, fields: Mapping[str, Any]) -> None:
        """Writes an event to all outputs; never raises, and waits for a blocked stream only briefly."""
        with contextlib.suppress(Exception):  # the log's own faults must not stop a publish
            ordered = _ordered(fields)
            line = jsonline.dumps_line(ordered)
            if len(self._waiting) >= _MOST_WAITING:
                self._missed += 1
            else:
                self._waiting.append((ordered, line))
            while self._waiting:
                with self._undisturbed(_LOCK_TIMEOUT_S) as undisturbed:
                    if not undisturbed:
                        return  # whoever disturbs writes this line as well
                    while self._waiting:
                        self._write(*self._waiting.popleft())

    @contextlib.contextmanager
    def _undisturbed(self, timeout_s: float = -1) -> Iterator[bool]:
        """Whether nobody else writes, not even this thread further up its stack: signal handlers log, too."""
        if not self._lock.acquire(timeout=timeout_s):
            yield False
            return
        was_writing, self._writing = self._writing, True
        try:
            yield not was_writing
        finally:
            self._writing = was_writing
            self._lock.release()

    def _write(self, fields: Mapping[str, Any], line: bytes) -> None:
        if self._closed:
            return
        missed, self._missed = self._missed, 0
        self._stream_lines.dropped += missed
        self._stream_lines.write(self._stream_line(fields, line), confess=self._stream_loss)
        if self._file_lines is not None:
            self._file_lines.dropped += missed
            self._file_lines.write(line + b"\n", confess=_file_loss)

    def _stream_line(self, fields: Mapping[str, Any], line: bytes) -> bytes:
        if self._style is not None:
            # From the JSON, so that what was made safe and cut there is so here as well.
            line = render_event(orjson.loads(line), self._style).encode("utf-8", "replace")
        if self._to_journal:
            line = _JOURNAL_PRIORITIES.get(str(fields.get("level")), b"<6>") + line
        return line + b"\n"

    def _stream_loss(self, dropped: int, reason: str, /) -> bytes:
        fields = _loss(dropped, reason, "stream")
        return self._stream_line(fields, jsonline.dumps_line(fields))

    def reopen(self) -> None:
        """Opens the log file anew, after logrotate has moved it; the old one is kept when that fails.

        Called on SIGHUP. Never raises; a failure is logged as ``log.reopen_failed``, also to the old file.
        """
        if self._file is None or self._file_lines is None:
            return
        try:
            fresh = FileOutput(self._file.path)
        except Exception as error:  # noqa: BLE001  # logging goes on where it can
            self.emit({"level": "error", "event": "log.reopen_failed", "error": error})
            return
        with self._undisturbed():
            self._file_lines.output = fresh
            old, self._file = self._file, fresh
            old.close()

    def has_history(self, rule: str, history_sha256: str) -> bool:
        """Whether the log file already tells of a history record.

        With it a commit is logged exactly once although the process can die between the two: after a crash,
        ask for each last commit. Looks at the last 4 MiB of the file, and into ``<file>.1`` when the file is
        shorter than that. Without a log file it is always False: what a stream got can't be known, there a
        commit comes at least once.

        Args:
            rule: the rule's name, as logged.
            history_sha256: the record's own digest.
        """
        if self._file is None:
            return False
        room = _HISTORY_TAIL_BYTES
        for path in (self._file.path, self._file.path.with_name(self._file.path.name + ".1")):
            with contextlib.suppress(OSError), path.open("rb") as lines:
                size = os.fstat(lines.fileno()).st_size
                lines.seek(max(0, size - room))
                if any(_tells(line, rule, history_sha256) for line in lines):
                    return True
                room -= size
            if room <= 0:
                break
        return False

    def close(self) -> None:
        """Ends the log; what is logged afterwards goes nowhere. Idempotent."""
        global _current  # noqa: PLW0603  # one log a process
        with self._undisturbed():
            if self._closed:
                return
            while self._waiting:
                self._write(*self._waiting.popleft())
            self._closed = True
            self._stream_lines.output.close()
            if self._file is not None:
                self._file.close()
        if _current is self:
            _current = None
            logging.captureWarnings(capture=False)
            logging.getLogger().removeHandler(_HANDLER)


_current: LogOutput | None = None


def configure(settings: LogSettings, *, stream: TextIO | None = None) -> LogOutput:
    """Sends all logs where the settings say; called at start and again at each reload.

    Loggers got before, also cached ones, follow. The log before stays in force when this raises, and is
    closed when it returns.

    Args:
        settings: the ``[log]`` table.
        stream: where to besides the file; standard output when None.

    Raises:
        UsageError: the log file can't be opened.
    """
    global _current  # one log a process
    output = LogOutput(settings, stream if stream is not None else sys.stdout)
    _configure_structlog()
    _set_level(settings.level)
    old, _current = _current, output
    root = logging.getLogger()
    if _HANDLER not in root.handlers:
        root.addHandler(_HANDLER)
    # watchdog tells every single event at DEBUG, and APScheduler each tick at INFO.
    root.setLevel(logging.INFO if settings.level == "debug" else logging.WARNING)
    logging.captureWarnings(capture=True)
    if old is not None:
        old.close()
    return output


def get_logger(**context: Any) -> Logger:
    """A logger that goes where the last ``configure`` said, and nowhere before it.

    Args:
        context: fields bound to each of its events.
    """
    _configure_structlog()
    return cast("Logger", structlog.get_logger(**context))


# structlog's filter is a class per level, and a cached logger keeps its class. So there is one class here,
# whose methods are exchanged when the level changes.
class _Logger(structlog.make_filtering_bound_logger(logging.INFO)):  # type: ignore[misc]  # made at run time
    """The one class of all loggers."""


def _set_level(name: str) -> None:
    filtering = structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[name.upper()])
    for attribute, method in vars(filtering).items():
        if not attribute.startswith("__"):
            setattr(_Logger, attribute, method)


class _Sink:
    """What structlog takes for the logger at the end of the processors; hands the event on as it is."""

    def _emit(self, fields: Mapping[str, Any]) -> None:
        if _current is not None:
            _current.emit(fields)

    debug = info = warning = error = critical = exception = fatal = warn = msg = log = _emit


_SINK: Final = _Sink()


def _hand_over(_: Any, method: str, fields: MutableMapping[str, Any]) -> tuple[tuple[Any], dict[str, Any]]:
    fields["level"] = {"exception": "error", "warn": "warning", "fatal": "critical"}.get(method, method)
    return (fields,), {}


def _configure_structlog() -> None:
    if structlog.is_configured() and structlog.get_config()["wrapper_class"] is _Logger:
        return
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _hand_over],
        wrapper_class=_Logger,
        logger_factory=lambda *_: _SINK,
        cache_logger_on_first_use=True,
    )


class _LibraryHandler(logging.Handler):
    """Brings the logs of watchdog, APScheduler and Python's warnings into the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        """Logs the record; ``event`` is its message, ``logger`` who said it."""
        with contextlib.suppress(Exception):
            output = _current
            if output is None:
                return
            try:
                message = record.getMessage()
            except Exception:  # noqa: BLE001  # a library's wrong format string
                message = str(record.msg)
            fields: dict[str, Any] = {
                "level": _level_name(record.levelno),
                "event": message.rstrip("\n"),
                "logger": record.name,
            }
            if record.exc_info:
                fields["exc_info"] = record.exc_info
            output.emit(fields)


_HANDLER: Final = _LibraryHandler()


def _level_name(number: int) -> str:
    for name in ("critical", "error", "warning", "info"):
        if number >= logging.getLevelNamesMapping()[name.upper()]:
            return name
    return "debug"


def _ordered(fields: Mapping[str, Any]) -> dict[str, Any]:
    rest = dict(fields)
    event = rest.pop("event", "")
    ordered: dict[str, Any] = {
        # RFC 3339 in UTC; isoformat writes +00:00, which is as valid but longer and sorts worse among others.
        "timestamp": datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z",
        "level": rest.pop("level", "info"),
        "event": event if isinstance(event, str) else str(event),
    }
    rest.pop("timestamp", None)
    rule = rest.pop("rule", None)
    if rule is not None:
        ordered["rule"] = rule
    exception = _exception_of(rest.pop("exc_info", None))
    ordered.update(rest)
    if exception is not None:
        ordered.setdefault("exception", jsonline.describe_exception(exception))
    return ordered


def _exception_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple) and len(exc_info) == 3 and isinstance(exc_info[1], BaseException):
        return exc_info[1]
    return sys.exception() if exc_info else None


def _loss(dropped: int, reason: str, output: str) -> dict[str, Any]:
    return _ordered(
        {"level": "warning", "event": "log.dropped", "dropped": dropped, "output": output, "reason": reason}
    )


def _file_loss(dropped: int, reason: str, /) -> bytes:
    return jsonline.dumps_line(_loss(dropped, reason, "file")) + b"\n"


def _stream_output(stream: TextIO) -> tuple[Output, int | None]:
    try:
        stream.flush()
        descriptor = stream.fileno()
        return StreamOutput(descriptor), descriptor
    except (OSError, ValueError):  # no descriptor, or closed
        return PythonStreamOutput(stream), None


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError):
        return False


def _tells(line: bytes, rule: str, history_sha256: str) -> bool:
    if history_sha256.encode() not in line:
        return False
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(fields, dict):
        return False
    return (fields.get("history_sha256"), fields.get("rule")) == (history_sha256, rule)


@contextlib.contextmanager
def bound(**context: Any) -> Iterator[None]:
    """Adds fields to every event logged by this thread inside the block."""
    with structlog.contextvars.bound_contextvars(**context):
        yield
