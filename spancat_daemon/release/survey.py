"""What a deployment folder holds at one moment: what ``current`` is, and which releases there are.

Reads only, without a lock, and is right also while another process publishes, rolls back or prunes.

A look at all releases costs a manifest each (some 70 µs), or, where it is remembered from an earlier look and
was not touched since, one ``lstat`` (3 µs); their names alone cost next to nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Protocol, TypeVar

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.manifest import MANIFEST_NAME, BadManifest, Manifest, parse_release_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from collections.abc import Set as AbstractSet

CURRENT: Final = "current"
RELEASES: Final = "releases"

_LINK = re.compile(r"(?:\./)?releases/([^/]+)/?")
_ATTEMPTS = 64  # at reading a folder that is being changed; each fails only if a swap falls into it
_SETTLED_NS = 2_000_000_000  # file systems stamp with a clock that ticks: ext4's 4 ms, others' up to 2 s


class FolderBusy(SpancatDaemonError):  # noqa: N818  # a state that callers branch on
    """Another process works on the deployment folder."""


class NotOurs(SpancatDaemonError):  # noqa: N818  # a verdict on a folder
    """The folder holds something under a name of ours that was not made by us, and won't be touched."""


@dataclass(frozen=True, slots=True)
class Release:
    """A published, immutable snapshot.

    Attributes:
        id: its name.
        sequence: its place in the order of releases.
        path: its directory now. The live one of a folder with ``swap = "exchange"`` is ``current`` itself.
        manifest: what ``release.json`` says.
        live: whether ``current`` leads to it.
    """

    id: str
    sequence: int
    path: Path
    manifest: Manifest
    live: bool

    @property
    def created_at(self) -> str:
        """When it was staged, as its manifest says."""
        return self.manifest.created_at

    @property
    def content_sha256(self) -> str:
        """The identity of its content."""
        return self.manifest.content_sha256

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The scores in its manifest."""
        return self.manifest.metrics


@dataclass(frozen=True, slots=True)
class Brief:
    """What decides about a release, so little that those of thousands can be remembered.

    Attributes:
        id, sequence, path, live: as of `Release`.
        created_at, content_sha256, model_sha256: as its manifest says.
        metrics: those of its scores that are plain numbers.
    """

    id: str
    sequence: int
    path: Path
    live: bool
    created_at: str
    content_sha256: str
    model_sha256: str
    metrics: Mapping[str, Any]


class AnyRelease(Protocol):
    """What `Release` and `Brief` have in common; see there."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def sequence(self) -> int:
        """Its place in the order of releases."""

    @property
    def path(self) -> Path:
        """Its directory now."""

    @property
    def live(self) -> bool:
        """Whether ``current`` leads to it."""

    @property
    def created_at(self) -> str:
        """When it was staged."""

    @property
    def content_sha256(self) -> str:
        """The identity of its content."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Its scores."""


R = TypeVar("R", bound=AnyRelease)


@dataclass(frozen=True, slots=True)
class Current:
    """What ``current`` is.

    Attributes:
        kind: ``absent``, ``link`` (swap = "symlink") or ``directory`` (swap = "exchange").
        id: of the release it leads to, which need not be there; ``None`` if it is absent, or a directory
            whose manifest can't be read.
    """

    kind: Literal["absent", "link", "directory"]
    id: str | None


@dataclass(frozen=True, slots=True)
class Survey(Generic[R]):
    """Everything found in a folder at one moment.

    Attributes:
        current: what is live.
        releases: every release with a readable manifest, newest (highest sequence) first.
        broken: releases whose manifest can't be read, and second copies, with the reason.
        misnamed: names in ``releases/`` of releases that are called otherwise, as a crash leaves them in the
            midst of an exchange.
        stray_links: names of links in ``releases/`` that a crash left in the midst of an exchange.
        foreign: what else lies in ``releases/``; never touched.
    """

    current: Current
    releases: tuple[R, ...]
    broken: tuple[tuple[Path, str], ...]
    misnamed: tuple[str, ...]
    stray_links: tuple[str, ...]
    foreign: tuple[Path, ...]


def current_of(folder: Path) -> Current:
    """Say what a folder's ``current`` is; it may be dangling.

    Raises:
        NotOurs: it is neither a link to a release nor a release.
        FolderBusy: it changed at every attempt.
    """
    for _ in range(_ATTEMPTS):
        found = _current_of(folder / CURRENT)
        if found is not None:
            return found
    raise _too_fast(folder)


def live_of(folder: Path) -> Release | None:
    """Return the live release; ``None`` if there is none, it is gone, or its manifest is broken.

    Raises:
        NotOurs: see `current_of`.
        FolderBusy: it changed at every attempt.
    """
    for _ in range(_ATTEMPTS):
        before = current_of(folder)
        if before.id is None:
            return None
        path = folder / CURRENT if before.kind == "directory" else folder / RELEASES / before.id
        with contextlib.suppress(BadManifest):
            manifest = manifests.read(path / MANIFEST_NAME)
            if manifest.id == before.id or before.kind == "link":
                return Release(manifest.id, manifest.sequence, path, manifest, live=True)
        if current_of(folder) == before:
            return None
    raise _too_fast(folder)


def survey_of(folder: Path, *, only: Collection[str] | None = None) -> Survey[Release]:
    """Look at everything, or at the releases of some names alone.

    Raises:
        NotOurs: see `current_of`.
        FolderBusy: it changed at every attempt.
        OSError: it can't be read.
    """
    return _steady(
        folder,
        lambda current: _look(folder, current, lambda path, live: read_release(Path(path), live=live), only),
    )


def read_release(path: Path, *, live: bool) -> Release:
    """Return what lies in a directory as a release.

    Raises:
        BadManifest: its manifest can't be read.
    """
    manifest = manifests.read(path / MANIFEST_NAME)
    return Release(manifest.id, manifest.sequence, path, manifest, live)


class Memory:
    """What the manifests of one folder said, for as long as they are the same files, untouched.

    Trusted only where an ``lstat`` tells the same device, inode, size and times as before the manifest was
    read. One that was touched a moment before it was read is not remembered: until the clock of the file
    system has ticked, another change would leave no trace.
    """

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        """Remembers nothing; `now_ns` is the clock that files are stamped with."""
        self._now_ns = now_ns
        self._known: dict[str, tuple[_Stamp, Brief]] = {}
        self._met: set[str] = set()

    def has_met(self, folder: Path, names: AbstractSet[str]) -> bool:
        """Whether each of these releases could be read once, and said the name that it has.

        Those that were not met yet are read for it.
        """
        for name in names - self._met:
            try:
                if read_release(folder / RELEASES / name, live=False).id != name:
                    return False
            except BadManifest:
                return False
            self._met.add(name)
        return True

    def forget(self) -> None:
        """Forget everything: somebody else held the folder."""
        self._known = {}
        self._met = set()

    def survey(self, folder: Path) -> Survey[Brief]:
        """Look at everything, as `survey_of` does and with its errors."""
        seen: dict[str, tuple[_Stamp, Brief]] = {}

        def brief(path: str, live: bool) -> Brief:
            name = path.rpartition("/")[2]
            before = _stamp(path)
            known = self._known.get(name)
            if known is None or known[0] != before:
                known = (before, _brief(read_release(Path(path), live=False)))
                touched_ns = before[-1]
                if _stamp(path) != before or not 0 <= touched_ns <= self._now_ns() - _SETTLED_NS:
                    return replace(known[1], live=live)
            seen[name] = known
            return replace(known[1], live=True) if live else known[1]

        found = _steady(folder, lambda current: _look(folder, current, brief, None))
        self._known = seen
        self._met = {release.id for release in found.releases if release.path.name == release.id}
        return found


def directories_in_releases(folder: Path) -> tuple[set[str], bool]:
    """Return the names of the directories in ``releases/``, and whether anything else lies there."""
    found: set[str] = set()
    others = False
    with contextlib.suppress(FileNotFoundError), os.scandir(folder / RELEASES) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found.add(entry.name)
            else:
                others = True
    return found, others


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory, sorted; none if it isn't there."""
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208  # names, not paths
    except FileNotFoundError:
        return []


def _current_of(current: Path) -> Current | None:
    """Say what it is, or ``None`` if it was swapped for another kind meanwhile."""
    try:
        status = current.lstat()
    except FileNotFoundError:
        return Current("absent", None)
    if stat.S_ISLNK(status.st_mode):
        try:
            return Current("link", _linked_id(current, os.fspath(current.readlink())))
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT}:  # no link any more
                return None
            raise
    if not stat.S_ISDIR(status.st_mode):
        raise _not_ours(current, "is neither a link nor a directory")
    try:
        manifest = manifests.read(current / MANIFEST_NAME)
    except BadManifest:
        damaged = (current / MANIFEST_NAME).is_file()
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(status, current.lstat()):
                if damaged:
                    return Current("directory", None)
                raise _not_ours(current, f"is a directory without {MANIFEST_NAME}") from None
        return None
    return Current("directory", manifest.id)


def _linked_id(current: Path, target: str) -> str:
    relative = os.path.relpath(target, current.parent) if target.startswith("/") else target
    match = _LINK.fullmatch(relative)
    if match is None or parse_release_id(match[1]) is None:
        raise _not_ours(current, f"is a link to {target!r}, which is no release of this folder")
    return match[1]


def _not_ours(current: Path, what: str) -> NotOurs:
    return NotOurs(
        f"{what}, so it was not made by spancat-daemon and is left alone",
        where=str(current),
        hint="move it away, or choose another `deploy` folder",
    )


def _too_fast(folder: Path) -> FolderBusy:
    return FolderBusy("changes too fast to be read", where=str(folder), hint="try again")


_Stamp = tuple[int, int, int, int, int]
_Looked = TypeVar("_Looked")


def _steady(folder: Path, look: Callable[[Current], _Looked]) -> _Looked:
    """Look until no swap falls into it."""
    for _ in range(_ATTEMPTS):
        before = current_of(folder)
        found = look(before)
        if current_of(folder) == before:
            return found
    raise _too_fast(folder)


def _stamp(path: str) -> _Stamp:
    try:
        status = os.lstat(f"{path}/{MANIFEST_NAME}")
    except OSError as error:
        raise BadManifest(f"can't be read: {error.strerror}", where=f"{path}/{MANIFEST_NAME}") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _brief(release: Release) -> Brief:
    manifest = release.manifest
    numbers = {
        key: value
        for key, value in manifest.metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return Brief(
        release.id,
        release.sequence,
        release.path,
        release.live,
        manifest.created_at,
        manifest.content_sha256,
        manifest.model_sha256,
        numbers,
    )


def _look(
    folder: Path, current: Current, read: Callable[[str, bool], R], only: Collection[str] | None
) -> Survey[R]:
    found = _Found(read)
    if current.kind == "directory" and (only is None or current.id in only):
        found.add(os.fspath(folder / CURRENT), live=True)
    linked = current.id if current.kind == "link" else None
    misnamed: list[str] = []
    stray: list[str] = []
    foreign: list[Path] = []
    root = os.fspath(folder / RELEASES)
    for name, kind in _entries(root) if only is None else _entries_of(root, only):
        if parse_release_id(name) is None or kind == "other":
            foreign.append(Path(root, name))
        elif kind == "link":
            with contextlib.suppress(OSError):  # gone meanwhile
                ours = _LINK.fullmatch(os.readlink(f"{root}/{name}")) is not None  # noqa: PTH115
                stray.append(name) if ours else foreign.append(Path(root, name))
        else:
            release = found.add(f"{root}/{name}", live=name == linked)
            if release is not None and release.id != name:
                misnamed.append(name)
    releases = sorted(found.releases.values(), key=lambda release: release.sequence, reverse=True)
    return Survey(
        current, tuple(releases), tuple(found.broken), tuple(misnamed), tuple(stray), tuple(foreign)
    )


def _entries(directory: str) -> list[tuple[str, Literal["directory", "link", "other"]]]:
    """What lies in a directory, sorted by name; nothing if it isn't there."""
    try:
        with os.scandir(directory) as entries:
            return sorted((entry.name, _kind(entry)) for entry in entries)
    except FileNotFoundError:
        return []


def _entries_of(
    directory: str, names: Collection[str]
) -> Iterator[tuple[str, Literal["directory", "link", "other"]]]:
    """The same of some names alone, which takes no longer for the others."""
    for name in sorted(names):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mode = os.lstat(f"{directory}/{name}").st_mode
            yield name, "directory" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "other"


def _kind(entry: os.DirEntry[str]) -> Literal["directory", "link", "other"]:
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "link" if entry.is_symlink() else "other"


class _Found(Generic[R]):
    """Releases by id, each once."""

    def __init__(self, read: Callable[[str, bool], R]) -> None:
        self.releases: dict[str, R] = {}
        self.broken: list[tuple[Path, str]] = []
        self._read = read

    def add(self, path: str, *, live: bool) -> R | None:
        try:
            release = self._read(path, live)
        except BadManifest as error:
            if os.path.isdir(path):  # noqa: PTH112  # else it was pruned meanwhile
                self.broken.append((Path(path), str(error)))
            return None
        known = self.releases.get(release.id)
        if known is not None:
            # What is live comes first, then what lies under its own name.
            keep, other = (release, known) if _rank(release) > _rank(known) else (known, release)
            self.broken.append((other.path, f"{other.path}: is a second copy of {keep.path}"))
            self.releases[release.id] = keep
            return release if keep is release else None
        self.releases[release.id] = release
        return release


def _rank(release: AnyRelease) -> tuple[bool, bool]:
    return release.live, release.path.name == release.id
