"""Which directories have to be watched so that no change of a checkpoint goes unseen.

For a checkpoint ``/a/b/model-best`` these are

* ``/a/b/model-best`` and all directories below it, for everything that happens in them;
* ``/a/b``, for the coming and going of ``model-best`` alone, since a trainer removes and copies it anew, and
  of files beside it that are renamed in to tell of it; if it is a link, also the directory around what that
  leads to;
* ``/`` and ``/a``, for their own end or move alone, which costs nothing however much happens in them;
* with a link on the way, the link's directory (for its re-targeting), and the same for where it leads to;
* while the checkpoint is missing, each existing directory on the way, for the coming and going of the next.

A wildcard adds the directory it stands in, for the coming and going of what matches. Nothing else is watched:
a neighbour with a million files costs nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from spancat_daemon.config import patterns
from spancat_daemon.triggers.directories import Interest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spancat_daemon.triggers.directories import Identity

MAXIMUM_DIRECTORIES = 8192
"""A tree of more than this is not a checkpoint; it is polled."""
MAXIMUM_LOOKED_AT = 1 << 16
"""As many directories are watched for one key in all, as for the runs that a wildcard matches."""
MAXIMUM_DEPTH = 32
"""Deeper is no checkpoint; each level costs an open descriptor during a look."""
MAXIMUM_LINKS = 40
"""As many links on one path as the kernel follows."""

_OPEN_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TREE = Interest(contents=True)
_ONLY_ITSELF = Interest()
_HINT = "point `source` at the checkpoint itself"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a part of a footprint can't be watched."""

    path: str
    reason: str
    hint: str


@dataclass(slots=True)
class Footprint:
    """What one look found.

    Attributes:
        root: identity of the directory that holds the checkpoint (or of the wildcard's root) if it is there.
        checkpoints: identity of each directory that the path or pattern leads to.
        directories: how many directories were claimed.
        faults: what could not be watched.
    """

    root: Identity | None = None
    checkpoints: list[Identity] = field(default_factory=list)
    directories: int = 0
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Wild:
    pattern: str


class _Root:
    """Stands in a route behind the directory whose absence is worth a word."""


class _Around:
    """Stands behind the directory around what a checkpoint that is a link leads to."""


_ROOT = _Root()
_AROUND = _Around()
Route = tuple["str | _Wild | _Root | _Around", ...]


class _LimitReached(Exception):  # noqa: N818  # ends a look early, never seen outside
    pass


def route(path: Path, pattern: str | None) -> Route:
    """The way from ``/`` to a checkpoint; `path` is the checkpoint, or the literal root of `pattern`."""
    parts = path.parts[1:]
    if pattern is None:
        return (*parts[:-1], _ROOT, *parts[-1:])
    rest = patterns.split(pattern)[len(parts) :]
    names = (patterns.literal(part) for part in rest)
    return (*parts, _ROOT, *(name or _Wild(part) for name, part in zip(names, rest, strict=True)))


class Look:
    """One walk along a route, claiming each directory before reading it, so that nothing falls between.

    Args:
        claim: called with an open directory and the interest in it; OSError where it can't be watched.
        contents: False: only the coming and going of matches, not what is in them.
        beside: files in the directory around the checkpoint whose coming and going matters too; where it is a
            link, also around what it leads to.
        missing: claim the coming and going of each directory on the way too.
        at_most: how many directories are claimed.
    """

    def __init__(
        self,
        claim: Callable[[int, Interest], None],
        *,
        contents: bool = True,
        beside: frozenset[str] = frozenset(),
        missing: bool = False,
        at_most: int = MAXIMUM_LOOKED_AT,
    ) -> None:
        self._claim_directory = claim
        self._contents = contents
        self._beside = beside
        self._missing = missing
        self._at_most = at_most
        self._depth = 0
        self._in_tree = 0
        self.found = Footprint()

    def take(self, way: Route) -> Footprint:
        """Walks; what it meets on the way ends up in the result, never in an exception."""
        try:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._follow(root, way, 0)
            finally:
                os.close(root)
        except _LimitReached:
            pass
        except OSError as error:
            self.found.faults.append(Fault("/".join(p for p in way if isinstance(p, str)), str(error), ""))
        return self.found

    def _follow(self, fd: int, way: Route, links: int) -> None:
        if not way:
            self._checkpoint(fd)
            return
        head, rest = way[0], way[1:]
        if isinstance(head, _Root):
            status = os.fstat(fd)
            self.found.root = (status.st_dev, status.st_ino)
            if self._beside:
                self._around(fd)
            self._follow(fd, rest, links)
        elif isinstance(head, _Around):
            self._around(fd)
            self._follow(fd, rest, links)
        elif isinstance(head, _Wild):
            self._claim(fd, Interest(patterns=frozenset({head.pattern})))
            for name in self._names(fd):
                if patterns.matches(head.pattern, name):
                    self._enter(fd, name, rest, links)
        elif head == "..":
            self._claim(fd, _ONLY_ITSELF)
            self._enter(fd, "..", rest, links)
        else:
            watched = self._missing or not any(isinstance(part, str | _Wild) for part in rest)
            self._claim(fd, Interest(names=frozenset({head})) if watched else _ONLY_ITSELF)
            if not self._enter(fd, head, rest, links, unless_plain=not watched) and not watched:
                self._claim(fd, Interest(names=frozenset({head})))
                self._enter(fd, head, rest, links)

    def _enter(self, fd: int, name: str, rest: Route, links: int, *, unless_plain: bool = False) -> bool:
        """Goes on in the entry `name`. With `unless_plain` it does so only if that is a directory itself."""
        try:
            inner = os.open(name, _OPEN_PATH, dir_fd=fd)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                self._fault(fd, error, name)
            return False
        try:
            mode = os.fstat(inner).st_mode
            if stat.S_ISDIR(mode):
                self._follow(inner, rest, links)
                return True
            if unless_plain:
                return False
            if stat.S_ISLNK(mode):
                self._follow_link(fd, os.readlink("", dir_fd=inner), rest, links + 1)
            return True
        finally:
            os.close(inner)

    def _follow_link(self, fd: int, target: str, rest: Route, links: int) -> None:
        if links > MAXIMUM_LINKS:
            return
        parts: Route = tuple(part for part in target.split("/") if part not in {"", "."})
        if self._beside and parts and not rest:
            parts = (*parts[:-1], _AROUND, parts[-1])
        if not target.startswith("/"):
            self._follow(fd, (*parts, *rest), links)
            return
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._follow(root, (*parts, *rest), links)
        finally:
            os.close(root)

    def _around(self, fd: int) -> None:
        """The directory around the checkpoint, where something beside it matters."""
        self._claim(fd, Interest(names=self._beside))

    def _checkpoint(self, fd: int) -> None:
        status = os.fstat(fd)
        self.found.checkpoints.append((status.st_dev, status.st_ino))
        if self._contents:
            self._in_tree = 0
            self._tree(fd)
        else:
            self._claim(fd, _ONLY_ITSELF)

    def _tree(self, fd: int) -> None:
        self._in_tree += 1
        if self._in_tree > MAXIMUM_DIRECTORIES:
            self._too_many(fd, MAXIMUM_DIRECTORIES)
        self._claim(fd, _TREE)
        for name in self._names(fd, only_directories=True):
            self._descend(fd, name)

    def _descend(self, fd: int, name: str) -> None:
        try:
            inner = os.open(name, _OPEN_LIST, dir_fd=fd)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                self._fault(fd, error, name)
            return
        self._depth += 1
        try:
            if self._depth > MAXIMUM_DEPTH:
                self._fault_at(
                    fd, f"more than {MAXIMUM_DEPTH} levels deep: not watched as a whole", _HINT, name
                )
                raise _LimitReached
            self._tree(inner)
        finally:
            self._depth -= 1
            os.close(inner)

    def _names(self, fd: int, *, only_directories: bool = False) -> list[str]:
        try:
            listing = os.open(".", _OPEN_LIST, dir_fd=fd)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                self._fault(fd, error)
            return []
        try:
            with os.scandir(listing) as entries:
                return [
                    entry.name
                    for entry in entries
                    if not only_directories or entry.is_dir(follow_symlinks=False)
                ]
        finally:
            os.close(listing)

    def _claim(self, fd: int, interest: Interest) -> None:
        if self.found.directories >= self._at_most:
            self._too_many(fd, self._at_most)
        try:
            self._claim_directory(fd, interest)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.ENOMEM}:
                self._fault(fd, error)
                raise _LimitReached from None
            if interest == _ONLY_ITSELF and error.errno == errno.EACCES:
                return  # only its own move would be seen here; check() compares instead
            self._fault(fd, error)
            return
        self.found.directories += 1

    def _too_many(self, fd: int, maximum: int) -> NoReturn:
        self._fault_at(fd, f"more than {maximum} directories: not watched as a whole", _HINT)
        raise _LimitReached

    def _fault(self, fd: int, error: OSError, name: str = "") -> None:
        if error.errno == errno.ENOSPC:
            reason, hint = (
                "the limit of inotify watches is reached",
                "raise fs.inotify.max_user_watches (sysctl)",
            )
        elif error.errno == errno.EACCES:
            reason, hint = "not readable", "let the daemon's user read this directory"
        else:
            reason, hint = error.strerror or str(error), ""
        self._fault_at(fd, reason, hint, name)

    def _fault_at(self, fd: int, reason: str, hint: str, name: str = "") -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115  # a magic link, not a path
        self.found.faults.append(Fault(f"{path.rstrip('/')}/{name}" if name else path, reason, hint))
