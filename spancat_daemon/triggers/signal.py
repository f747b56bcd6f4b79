"""What trainers say of themselves: a file beside their checkpoints names those that were just written.

``<folder of the checkpoint>/written.json``, renamed in as a whole after each save:
``{"schema": 1, "step": 400, "checkpoints": ["model-last", "model-best"], …}``. It only says that looking is
worthwhile now; whether a checkpoint is whole is proven as ever. Whoever can write there decides what lies
under that name, so it is opened without following, or waiting for, anything.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from spancat_daemon.checkpoint.tree import Stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

SIGNAL_NAME: Final = "written.json"

LARGEST_BYTES: Final = 64 << 10
"""Largest file that is read; real ones have about 200 bytes."""

_SCHEMA: Final = 1
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class _NoSignal(Exception):  # noqa: N818  # describes the file
    """What is there is no signal; carries the reason."""


@dataclass(slots=True)
class _Seen:
    """The last look at one signal file.

    Attributes:
        stamp: of the file; None: there was none.
        complaint: why it was none, as it was said last.
    """

    stamp: Stamp | None
    complaint: str = ""


@dataclass(slots=True)
class _Attended:
    """A checkpoint, and each place where a trainer may speak of it."""

    path: Path
    places: dict[Path, _Seen]


class Signals:
    """Looks at the signal files of checkpoints when something happened near them; of one thread.

    A checkpoint that is a link has two: a trainer that writes where the link leads to speaks there, of the
    name that the folder has there; one that re-targets the link speaks beside that. Either word is taken.

    Args:
        on_ignored: told `(key, path, reason)` of a file that is no signal; once, until that changes.
    """

    def __init__(self, on_ignored: Callable[[str, Path, str], None]) -> None:
        self._on_ignored = on_ignored
        self._attended: dict[str, _Attended] = {}

    def attend(self, checkpoints: Mapping[str, Path]) -> None:
        """Looks out for signals on these checkpoints, by key, and no others; what is there already is old."""
        attended: dict[str, _Attended] = {}
        for key, path in checkpoints.items():
            before = self._attended.get(key)
            if before is None or before.path != path:
                before = _Attended(path, {where: _Seen(_stamp(_file(where))) for where in _places(path)})
            attended[key] = before
        self._attended = attended

    def given(self, key: str) -> bool:
        """Whether the trainer has said, since this was last asked, that it wrote the checkpoint of `key`."""
        attended = self._attended.get(key)
        if attended is None:
            return False
        places: dict[Path, _Seen] = {}
        given = False
        for where in _places(attended.path):
            seen = attended.places.get(where)
            if seen is None:  # the link leads elsewhere: what was said there before is old
                places[where] = _Seen(_stamp(_file(where)))
                continue
            places[where] = seen
            given = self._given_at(key, where, seen) or given
        attended.places = places
        return given

    def _given_at(self, key: str, where: Path, seen: _Seen) -> bool:
        path = _file(where)
        stamp = _stamp(path)
        if stamp is None or stamp == seen.stamp:
            seen.stamp = stamp
            return False
        try:
            stamp, names = _read(path)
        except FileNotFoundError:
            return False  # replaced at this moment: the next event tells
        except (_NoSignal, OSError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            if reason != seen.complaint:
                self._on_ignored(key, path, reason)
            seen.stamp, seen.complaint = stamp, reason
            return False
        seen.stamp, seen.complaint = stamp, ""
        return where.name in names


def _places(checkpoint: Path) -> tuple[Path, ...]:
    """The checkpoint as it is named and, if that is a link, as it is named where the link leads to."""
    try:
        target = checkpoint.resolve() if checkpoint.is_symlink() else checkpoint
    except (OSError, RuntimeError):  # around in a circle
        return (checkpoint,)
    return (checkpoint,) if target == checkpoint else (checkpoint, target)


def _file(checkpoint: Path) -> Path:
    return checkpoint.with_name(SIGNAL_NAME) if checkpoint.name else checkpoint / SIGNAL_NAME


def _stamp(path: Path) -> Stamp | None:
    try:
        return Stamp.of(path.lstat())
    except OSError:  # also where the folder can't be looked into: then of its checkpoint more is said
        return None


def _read(path: Path) -> tuple[Stamp, frozenset[str]]:
    """The stamp of a signal file, and the checkpoints that it names."""
    if stat.S_ISLNK(path.lstat().st_mode):
        raise _NoSignal("is a symbolic link, which is never followed")
    fd = os.open(path, _OPEN)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _NoSignal("is not a regular file")
        data = os.read(fd, LARGEST_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > LARGEST_BYTES:
        raise _NoSignal(f"has more than {LARGEST_BYTES:,} bytes")
    return Stamp.of(status), _names(data)


def _names(data: bytes) -> frozenset[str]:
    try:
        told = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _NoSignal(f"is not whole JSON: {error.msg}") from None
    if not isinstance(told, dict) or told.get("schema") != _SCHEMA:
        raise _NoSignal(f"is not of the schema {_SCHEMA}, the only one that is known")
    names = told.get("checkpoints")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _NoSignal("does not name its checkpoints in 'checkpoints'")
    return frozenset(names)
