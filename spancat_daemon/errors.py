"""Errors that reach a user: each says what was wrong, where, and what to do."""

from __future__ import annotations

from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class ExitCode(IntEnum):
    """Exit codes of every command, a contract with scripts."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_DAEMON = 3
    FINDINGS = 4


class SpancatDaemonError(Exception):
    """A failure that its message explains completely; never shown with a traceback.

    Attributes:
        reason: what was wrong, one sentence without a full stop at its end.
        where: the path, or ``file:line:column``, it was found at; may be empty.
        hint: what to do about it; may be empty.
        exit_code: what a command that fails with it exits with.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, reason: str, *, where: str = "", hint: str = "") -> None:
        self.reason = reason
        self.where = where
        self.hint = hint
        super().__init__(reason)

    def __str__(self) -> str:
        text = f"{self.where}: {self.reason}" if self.where else self.reason
        return f"{text}; {self.hint}" if self.hint else text


class UsageError(SpancatDaemonError):
    """A command line or a configuration that can't be carried out as it stands."""

    exit_code = ExitCode.USAGE


class NoDaemon(SpancatDaemonError):  # noqa: N818  # names a state that callers branch on, not a fault
    """No daemon answers on the control socket."""

    exit_code = ExitCode.NO_DAEMON


class Rejected(SpancatDaemonError):  # noqa: N818  # a verdict on a checkpoint
    """A checkpoint that must not become a release; trying again without a change is useless."""


class RolledBack(Rejected):
    """A checkpoint whose content was live, and that somebody went back from; nothing is wrong with it."""


class Moved(SpancatDaemonError):  # noqa: N818  # a verdict on a checkpoint
    """A checkpoint that changed while it was read; the next scan looks at it anew."""


class Vanished(SpancatDaemonError):  # noqa: N818  # a verdict on a checkpoint
    """A checkpoint that is not there, or not there any more; not a fault."""


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Let a system error that leaves this say which file it is about: see `name_place`."""
    try:
        yield
    except OSError as error:
        name_place(error, path)
        raise


def name_place(error: OSError, path: Path) -> None:
    """Let a system error say which file it is about, unless it does: it only knows what the call was given.

    That may be a descriptor, a name in a directory that was open, or what a link was to hold.
    """
    if not isinstance(error.filename, str) or not error.filename.startswith("/"):
        error.filename, error.filename2 = str(path), None
