"""From a file to a ``Configuration``, or to all that is wrong with it."""

from __future__ import annotations

import copy
import errno
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from spancat_daemon.config import checks, diagnosis, places, resolution, tables
from spancat_daemon.config.aftermath import NOT_ALONE
from spancat_daemon.config.interpolation import BadVariable, interpolate
from spancat_daemon.config.located import Located
from spancat_daemon.config.model import Configuration
from spancat_daemon.config.problems import ConfigurationError, Problem
from spancat_daemon.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails


ENVIRONMENT_VARIABLE: Final = "SPANCAT_DAEMON_CONFIG"
SEARCHED: Final = (Path("daemon.toml"), Path("/etc/spancat-daemon/daemon.toml"))

LARGEST_BYTES: Final = 1 << 20
LONGEST_LINE: Final = 16_384
MOST_RULES: Final = 1_000
MOST_PROBLEMS: Final = 100
_DIGITS: Final = re.compile(r"[0-9_]{4301}")
_EXAMPLE: Final = 'add [[watch]] with name = "…", source = "…/model-best" and deploy = "…"'


def find(path: Path | None, environ: Mapping[str, str]) -> Path:
    """The file to read: the one asked for, else of $SPANCAT_DAEMON_CONFIG, ./daemon.toml, /etc/….

    Raises:
        UsageError: none was asked for and there is none.
    """
    if path is not None:
        return path
    if environ.get(ENVIRONMENT_VARIABLE):
        return Path(environ[ENVIRONMENT_VARIABLE])
    for candidate in SEARCHED:
        if os.path.lexists(candidate):
            return candidate
    raise UsageError(
        f"there is no configuration: neither ${ENVIRONMENT_VARIABLE} nor {' nor '.join(map(str, SEARCHED))}",
        hint="name one with -c FILE",
    )


def load(
    path: Path | None = None, environ: Mapping[str, str] = os.environ, *, references: bool = False
) -> Configuration:
    """Reads, fills in and checks a daemon.toml.

    Relative paths are taken from the folder of the file; ``$STATE_DIRECTORY`` and ``$RUNTIME_DIRECTORY``,
    which systemd sets, replace ``state_dir`` and the default folder of the control socket.

    Args:
        path: the file; None to look for it, see ``find``.
        environ: the environment to fill in.
        references: also look into the files that it names: what takes snapshots can't do without them, what
            only lists releases or rolls back can.

    Raises:
        ConfigurationError: what it says can't be carried out; its text shows every problem.
        UsageError: there is no such file, or it can't be read.
    """
    located = load_located(path, environ)
    if references:
        from spancat_daemon.config.references import problems  # noqa: PLC0415  # brings what reads probes

        found = problems(located)
        if found:
            raise ConfigurationError(found)
    return located.configuration


def load_located(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Located:
    """The same, with the places of its keys, and without looking into the files it names.

    Raises:
        ConfigurationError: as ``load``.
        UsageError: as ``load``.
    """
    path = find(path, environ)
    return _Reading(read(path), path, environ).located()


def control_socket(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where a daemon with this configuration listens, as far as that can be told from a file with mistakes.

    Raises:
        UsageError: there is no such file, or it can't be read.
    """
    path = find(path, environ)
    reading = _Reading(read(path), path, environ)
    try:
        document = reading.filled(reading.syntax(), ())
    except ConfigurationError:
        return None
    reading.resolve_paths(document)
    daemon = document["daemon"]
    socket = daemon.get("control_socket") if isinstance(daemon, dict) else None
    return Path(socket) if isinstance(socket, str) and socket.startswith("/") else None


def read(path: Path) -> str:
    """The text of the file; never blocks, whatever the path leads to.

    Raises:
        UsageError: it can't be read, is no regular file, too large, or not UTF-8.
    """
    where = os.fsencode(path).decode("utf-8", "backslashreplace")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        hint = "name another with -c FILE" if number == errno.ENOENT else ""
        reason = os.strerror(number) if number else str(error)
        raise UsageError(f"the configuration can't be read: {reason}", where=where, hint=hint) from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise UsageError(f"the configuration is {kind}", where=where, hint="name a file with -c FILE")
        with os.fdopen(fd, "rb", closefd=False) as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the configuration can't be read: {error.strerror}", where=where) from error
    finally:
        os.close(fd)
    if len(content) > LARGEST_BYTES:
        raise UsageError(
            f"the configuration is larger than {LARGEST_BYTES} bytes",
            where=where,
            hint="is this the right file?",
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1
        raise UsageError(
            f"the byte 0x{content[error.start]:02x} is not UTF-8",
            where=f"{where}:{line}:{column}",
            hint="re-encode it",
        ) from error


def parse(text: str, path: Path, environ: Mapping[str, str]) -> Configuration:
    """Checks the text of a daemon.toml that lies, or would lie, at a path.

    Raises:
        ConfigurationError: with all of its problems.
    """
    return _Reading(text, path, environ).located().configuration


class _Reading:
    """One text on its way to a configuration, collecting problems."""

    def __init__(self, text: str, path: Path, environ: Mapping[str, str]) -> None:
        self.file = os.fsencode(path).decode("utf-8", "backslashreplace")
        self.path = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would leave the folder of a linked file
        self.environ = environ
        self.places = places.unlocated(text)
        self.problems: list[Problem] = []
        self.bad: set[places.Path] = set()

    def located(self) -> Located:
        written = self.filled(self.syntax(), ())
        document = copy.deepcopy(written)
        self.resolve_paths(document)
        configuration = self.validated(document, written)
        if self.problems or configuration is None:
            raise ConfigurationError(self.problems)
        return Located(configuration, self.file, self.places)

    def add(self, place: places.Place, message: str) -> None:
        text = self.places.line(place.line)
        self.problems.append(Problem(place.line, place.column, message, text, self.file))

    def syntax(self) -> dict[str, Any]:
        """The text as TOML; of syntax errors only the first can be told."""
        text = self.places.text
        for number, line in enumerate(text.split("\n"), start=1):
            if len(line) > LONGEST_LINE:
                self.add(
                    places.Place(number, 1), f"the line is longer than {LONGEST_LINE} characters; break it up"
                )
                raise ConfigurationError(self.problems)
        try:
            self.places.check_keys()
            document = tomllib.loads(text)
            self.places = places.locate(text)
        except tomllib.TOMLDecodeError as error:
            self.add(*_syntax_error(str(error), self.places))
            raise ConfigurationError(self.problems) from error
        except places.TooDeep as error:
            self.add(error.place, str(error))
            raise ConfigurationError(self.problems) from error
        except ValueError:  # of int(), which reads no more than 4,300 digits
            digits = _DIGITS.search(text)
            self.add(self.places.at(digits.start() if digits else 0), "a number has too many digits")
            raise ConfigurationError(self.problems) from None
        except RecursionError:
            self.add(places.Place(1, 1), "arrays or tables are nested too deeply")
            # the deep traceback explains nothing
            raise ConfigurationError(self.problems) from None
        rules = document.get("watch")
        if isinstance(rules, list) and len(rules) > MOST_RULES:
            self.add(self.places.key(("watch", MOST_RULES)), f"there are more than {MOST_RULES:,} [[watch]]")
            raise ConfigurationError(self.problems)
        return document

    def filled(self, value: Any, path: places.Path) -> Any:
        """The value with variables filled into its strings."""
        if isinstance(value, dict):
            return {key: self.filled(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.filled(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        try:
            return interpolate(value, self.environ)
        except BadVariable as error:
            span = self.places.spans[path]
            # escapes may have moved it, but they don't change what is between ${ and }
            offset = max(self.places.text.find(error.written, span.start, span.end), span.start)
            self.add(self.places.at(offset), str(error))
            self.bad.add(path)
            return value

    def resolve_paths(self, document: dict[str, Any]) -> None:
        for finding in resolution.resolve(document, self.path.parent, self.environ, self.bad):
            self.bad.add(finding.path)
            self.add(self.places.value(finding.path), finding.message)

    def validated(self, document: dict[str, Any], written: Mapping[str, Any]) -> Configuration | None:
        configuration = None
        unknown = ("path",) in self.places.spans
        try:
            configuration = Configuration.model_validate(
                {**document, "path": self.path}, context={"file": True}
            )
        except ValidationError as error:
            for detail in error.errors(include_url=False)[:MOST_PROBLEMS]:
                path = tables.path_of(detail)
                # a value without its variable is no value; a key that does not exist is wrong all the same
                if path in self.bad and detail["type"] != "extra_forbidden":
                    continue
                self.bad.add(path)
                if path == ("watch",) and detail["type"] == "missing":
                    continue
                if not diagnosis.is_misspelt(detail, document):
                    at = self.places.key if _is_of_key(detail) else self.places.value
                    self.add(at(path), diagnosis.message(detail, document))
        if unknown:
            self.add(self.places.key(("path",)), diagnosis.unknown(("path",), document))
        if "watch" not in written or written["watch"] == []:
            known = [key for key in written if key not in tables.keys_of(())]
            if not any("'watch'" in diagnosis.unknown((key,), document) for key in known):
                self.add(
                    places.Place(self.places.last_line, 1),
                    f"there is no [[watch]]: nothing to do; {_EXAMPLE}",
                )
        for finding in checks.combinations_of(document, written, self.bad, self.places.value):
            at = self.places.key if finding.at_key else self.places.value
            self.add(at(finding.path), finding.message)
        return configuration


def _is_of_key(error: ErrorDetails) -> bool:
    """Whether it is a key that is wrong, and not its value."""
    return error["type"] == "extra_forbidden" or (error["type"] == NOT_ALONE and bool(error["ctx"]["key"]))


def _syntax_error(text: str, known: places.Places) -> tuple[places.Place, str]:
    """Where tomllib stopped, and what that usually means."""
    match = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", text)
    reason = text[: match.start()] if match else text
    if match and match[1]:
        place = places.Place(int(match[1]), int(match[2]))
    else:
        place = places.Place(known.last_line, len(known.line(known.last_line)) + 1)
    before = known.line(place.line)[: place.column - 1]
    if reason == "Cannot overwrite a value":
        reason = "this key is given twice"
        place = places.Place(place.line, len(before) - len(before.lstrip()) + 1)
    elif reason.startswith("Cannot declare"):
        reason = "this table is given twice; a further rule begins with [[watch]]"
    elif reason == "Invalid value" or reason.startswith("Expected newline or end of document"):
        reason = f'{reason}; text stands in quotes: key = "text"'
    elif reason.startswith("Expected '=' after a key"):
        reason = f"{reason}; write key = value"
    elif reason.startswith("Illegal character '\\n'"):
        reason = "the text is not closed with a quote"
    return place, f"not TOML: {reason}"
