"""What a deployment folder holds at one moment: what ``current`` is, and which releases there are.

Reads only, without a lock, and is right also while another process publishes, rolls back or prunes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.manifest import MANIFEST_NAME, BadManifest, Manifest, parse_release_id

if TYPE_CHECKING:
    from pathlib import Path

CURRENT: Final = "current"
RELEASES: Final = "releases"

_LINK = re.compile(r"(?:\./)?releases/([^/]+)/?")
_ATTEMPTS = 64  # at reading a folder that is being changed; each fails only if a swap falls into it


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
class Survey:
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
    releases: tuple[Release, ...]
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


def survey_of(folder: Path) -> Survey:
    """Look at everything.

    Raises:
        NotOurs: see `current_of`.
        FolderBusy: it changed at every attempt.
        OSError: it can't be read.
    """
    for _ in range(_ATTEMPTS):
        before = current_of(folder)
        survey = _look(folder, before)
        if current_of(folder) == before:
            return survey
    raise _too_fast(folder)


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


def _look(folder: Path, current: Current) -> Survey:
    found = _Found()
    if current.kind == "directory":
        found.add(folder / CURRENT, live=True)
    misnamed: list[str] = []
    stray: list[str] = []
    foreign: list[Path] = []
    for name in names_in(folder / RELEASES):
        path = folder / RELEASES / name
        if parse_release_id(name) is None:
            foreign.append(path)
        elif path.is_symlink():
            with contextlib.suppress(OSError):  # gone meanwhile
                ours = _LINK.fullmatch(os.fspath(path.readlink())) is not None
                stray.append(name) if ours else foreign.append(path)
        elif path.is_dir():
            release = found.add(path, live=current == Current("link", name))
            if release is not None and release.id != name:
                misnamed.append(name)
        elif path.exists():
            foreign.append(path)
    releases = sorted(found.releases.values(), key=lambda release: release.sequence, reverse=True)
    return Survey(
        current, tuple(releases), tuple(found.broken), tuple(misnamed), tuple(stray), tuple(foreign)
    )


class _Found:
    """Releases by id, each once."""

    def __init__(self) -> None:
        self.releases: dict[str, Release] = {}
        self.broken: list[tuple[Path, str]] = []

    def add(self, path: Path, *, live: bool) -> Release | None:
        try:
            manifest = manifests.read(path / MANIFEST_NAME)
        except BadManifest as error:
            if path.is_dir():  # else it was pruned meanwhile
                self.broken.append((path, str(error)))
            return None
        release = Release(manifest.id, manifest.sequence, path, manifest, live)
        known = self.releases.get(manifest.id)
        if known is not None:
            # What is live comes first, then what lies under its own name.
            keep, other = (release, known) if _rank(release) > _rank(known) else (known, release)
            self.broken.append((other.path, f"{other.path}: is a second copy of {keep.path}"))
            self.releases[manifest.id] = keep
            return release if keep is release else None
        self.releases[manifest.id] = release
        return release


def _rank(release: Release) -> tuple[bool, bool]:
    return release.live, release.path.name == release.id
