"""A deployment folder: where its parts are, what is live, which releases it holds, and who may change it."""

from __future__ import annotations

import contextlib
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

from spancat_daemon.errors import SpancatDaemonError, UsageError
from spancat_daemon.release.durability import DURABLE
from spancat_daemon.release.history import History, rfc3339
from spancat_daemon.release.lock import hold
from spancat_daemon.release.manifest import BadManifest, parse_release_id
from spancat_daemon.release.survey import (
    CURRENT,
    RELEASES,
    Brief,
    Current,
    FolderBusy,
    Memory,
    NotOurs,
    Release,
    Survey,
    current_of,
    directories_in_releases,
    live_of,
    names_in,
    read_release,
    survey_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.lock import Lock

__all__ = [
    "Brief",
    "Current",
    "DeploymentFolder",
    "FolderBusy",
    "NoSuchRelease",
    "NotOurs",
    "Release",
    "Survey",
    "unique_bytes",
]


STATE: Final = ".spancat-daemon"
"""The folder of what is not for readers: lock, history, staging, trash."""

_Thing = TypeVar("_Thing")


class NoSuchRelease(UsageError):  # noqa: N818  # names a state, as NoDaemon
    """No release, or more than one, has this name."""


class DeploymentFolder:
    """Paths and state of one deployment folder; holds nothing open.

    Reading needs no lock and never sees a state between two releases. Whoever changes anything holds `lock`.

    Attributes:
        memory: what its manifests said, which spares `outline` reading them again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.current = path / CURRENT
        self.releases_path = path / RELEASES
        self.state_path = path / STATE
        self.staging_path = self.state_path / "staging"
        self.incoming_path = self.state_path / "incoming"
        self.trash_path = self.state_path / "trash"
        self.rejected_path = self.state_path / "rejected"
        self.pins_path = self.state_path / "pins"
        self.history_path = self.state_path / "history.jsonl"
        self.lock_path = self.state_path / "lock"
        self.announced_path = self.state_path / "announced"
        self.memory = Memory()

    def prepare(self, durability: Durability = DURABLE) -> None:
        """Create what is missing, durably; does nothing to a folder that is complete.

        Raises:
            NotOurs: ``current`` or the folder itself is something else, or it would lie inside of another
                one's parts; nothing was created.
            OSError: a directory can't be created or made to stay.
        """
        self.current_state()
        if not self.state_path.is_dir():
            self._check_above()
        missing: list[Path] = []
        above = self.path
        while not above.exists():
            missing.insert(0, above)
            above = above.parent
        if not above.is_dir():
            raise NotOurs("is not a directory", where=str(above), hint="choose another `deploy` folder")
        missing += [
            path
            for path in (
                self.releases_path,
                self.state_path,
                self.staging_path,
                self.incoming_path,
                self.trash_path,
                self.rejected_path,
                self.pins_path,
            )
            if not path.is_dir()
        ]
        for path in missing:
            path.mkdir(mode=0o755, exist_ok=True)  # another rule's may have the same folder above
            durability.sync_directory_at(path.parent)

    def _check_above(self) -> None:
        resolved = self.path.resolve()
        for above in resolved.parents:
            if (
                resolved.relative_to(above).parts[0] in {RELEASES, CURRENT, STATE}
                and (above / STATE).is_dir()
            ):
                raise NotOurs(
                    f"lies inside of the deployment folder {above}",
                    where=str(self.path),
                    hint="choose another `deploy` folder",
                )

    def lock(
        self,
        holder: str,
        *,
        control: Path | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> AbstractContextManager[Lock]:
        """Hold the folder, which is prepared; see `lock.hold`."""
        return hold(self.path, self.lock_path, holder, since=rfc3339(clock()), control=control)

    def current_state(self) -> Current:
        """Say what ``current`` is; see `current_of`."""
        return current_of(self.path)

    def survey(self, *, only: Collection[str] | None = None) -> Survey[Release]:
        """Look at everything, or at the releases of some names alone; see `survey_of`."""
        return survey_of(self.path, only=only)

    def outline(self) -> Survey[Brief]:
        """Look at everything as `survey` does, reading only the manifests that are not remembered."""
        return self.memory.survey(self.path)

    def ids(self) -> list[str]:
        """Return the names of all releases, readable or not, newest (highest sequence) first."""
        found, _ = directories_in_releases(self.path)
        current = self.current_state()
        if current.kind == "directory" and current.id is not None:
            found.add(current.id)
        numbered = ((parse_release_id(name), name) for name in found)
        return [name for _, name in sorted(((n, name) for n, name in numbered if n), reverse=True)]

    def live(self) -> Release | None:
        """Return the live release; see `live_of`."""
        return live_of(self.path)

    def releases(self) -> list[Release]:
        """Return every release with a readable manifest, newest (highest sequence) first; see `survey`."""
        return list(self.survey().releases)

    def broken(self) -> list[tuple[Path, str]]:
        """Return directories of releases that `releases` leaves out, each with the reason."""
        return list(self.survey().broken)

    def find(self, name: str, *, history: History | None = None) -> Release:
        """Find a release by id, unique prefix, sequence number, or ``@n``: n before the live one.

        Raises:
            NoSuchRelease: none or several; names the newest.
            SpancatDaemonError: it is there, but its manifest can't be read.
        """
        if re.fullmatch(r"@[0-9]+", name):
            return self._back(name, history)
        ids = self.ids()
        named = fitting(name, ids, ids)
        if len(named) == 1 and (found := self._named(named[0], self.current_state())) is not None:
            return found
        survey = self.survey()
        releases = survey.releases
        matches = fitting(name, releases, [release.id for release in releases])
        if len(matches) == 1:
            return matches[0]
        if matches:
            several = ", ".join(release.id for release in matches[:5])
            raise NoSuchRelease(f"{name!r} fits several releases: {several}", where=str(self.path))
        for _, reason in fitting(name, survey.broken, [path.name for path, _ in survey.broken]):
            raise SpancatDaemonError(reason, hint="it was left alone; `list` shows the others")
        newest = ", ".join(release.id for release in releases[:3])
        raise NoSuchRelease(
            f"there is no release {name!r}",
            where=str(self.path),
            hint=f"the newest are {newest}" if newest else "nothing was published here yet",
        )

    def previous(self, *, history: History | None = None) -> Release | None:
        """Return what was live before the live one, for going back: ``@1``.

        By the history, where a rollback takes out what it left; then by sequence, below those.
        """
        if history is None and (left := self._left_last()) is not None:
            return left
        return next(self._way_back(history), None)

    def before_live(self, *, history: History | None = None) -> list[Release]:
        """Return the releases that one would go back through from the live one: ``@1``, ``@2``, ….

        By the history first, then by sequence, below those. The live one itself may be damaged beyond
        recognition.
        """
        return list(self._way_back(history))

    def _way_back(self, history: History | None) -> Iterator[Release]:
        """Yield them one after the other, reading no more manifests than are asked for."""
        current = self.current_state()
        history = history or History.reading(self.history_path)
        live = current.id or history.live
        if live is None:
            return
        order = list(history.live_order())
        if live in order:
            del order[order.index(live) :]
        lowest = parse_release_id(live) or 0
        for name in reversed(order):
            if (release := self._named(name, current)) is not None:
                lowest = min(lowest, release.sequence)
                yield release
        for name in self.ids():
            below = (parse_release_id(name) or 0) < lowest
            if below and (release := self._named(name, current)) is not None:
                yield release

    def _left_last(self) -> Release | None:
        """What the last swap replaced, if that was no rollback: the end of the history is enough for it."""
        last = History.last_change(self.history_path)
        if last is None or last.kind != "commit" or last.data.get("trigger") == "rollback":
            return None
        current = self.current_state()
        left = last.data.get("previous_release")
        if current.id is None or last.data.get("release") != current.id or left in {None, current.id}:
            return None
        return self._named(str(left), current)

    def _back(self, name: str, history: History | None) -> Release:
        steps = int(name[1:])
        if steps == 1 and (previous := self.previous(history=history)) is not None:
            return previous
        if steps == 0:
            before, found = 0, self.live()
        else:
            back = []
            for release in self._way_back(history):
                back.append(release)
                if len(back) == steps:
                    break
            before, found = len(back), back[steps - 1] if len(back) == steps else None
        if found is not None:
            return found
        unreadable = "".join(f"; {reason}" for _, reason in self.broken())
        raise NoSuchRelease(
            f"there is no {name}: only {before} releases lie before the live one{unreadable}",
            where=str(self.path),
        )

    def _named(self, release_id: str, current: Current) -> Release | None:
        """The release that lies under its own name, or as ``current``; None if its manifest can't be read."""
        live = release_id == current.id
        path = self.current if live and current.kind == "directory" else self.releases_path / release_id
        if parse_release_id(release_id) is None or (path != self.current and path.is_symlink()):
            return None
        try:
            release = read_release(path, live=live)
        except BadManifest:
            return None
        return release if release.id == release_id else None

    def next_sequence(self, *, history: History | None = None) -> int:
        """Return a number higher than that of anything that is or ever was in this folder."""
        history = history or History.reading(self.history_path)
        highest = history.highest
        names = {self.current_state().id or ""}
        for directory in (self.releases_path, self.staging_path, self.trash_path, self.rejected_path):
            with contextlib.suppress(FileNotFoundError):
                names.update(os.listdir(directory))  # noqa: PTH208  # names, not paths
        names -= history.released()  # none of which is higher
        for name in names:  # in staging and trash a dot and more follow
            highest = max(highest, parse_release_id(name.partition(".")[0]) or 0)
        return highest + 1

    def pins(self) -> frozenset[str]:
        """Ids of the releases that retention leaves alone because someone said so."""
        return frozenset(names_in(self.pins_path))

    def pin(self, release_id: str, durability: Durability = DURABLE) -> None:
        """Pin a release, durably; harmless if it is pinned.

        Raises:
            OSError: it can't be made to stay.
        """
        _must_be_id(release_id)
        os.close(os.open(self.pins_path / release_id, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        durability.sync_directory_at(self.pins_path)

    def unpin(self, release_id: str, durability: Durability = DURABLE) -> None:
        """Take a pin away, durably; harmless if there is none.

        Raises:
            OSError: it can't be made to stay.
        """
        _must_be_id(release_id)
        (self.pins_path / release_id).unlink(missing_ok=True)
        durability.sync_directory_at(self.pins_path)

    def announced(self) -> int:
        """`seq` of the last commit that was written to the structured log, 0 if that is not known.

        Whoever logs commits does so for those after it, and then calls `mark_announced`. It is not made
        durable: after a power cut a commit may be logged once more, never not at all.
        """
        try:
            return int(self.announced_path.read_bytes())
        except (OSError, ValueError):
            return 0

    def mark_announced(self, seq: int) -> None:
        """Remember that the commit with this `seq` is in the log.

        Raises:
            OSError: it can't be written.
        """
        fd = os.open(self.announced_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            os.pwrite(fd, b"%020d\n" % seq, 0)  # one write over the same bytes: there is no moment without
        finally:
            os.close(fd)


def unique_bytes(path: Path) -> int:
    """Bytes that deleting a release would free: of files with no name outside of it."""
    unique = 0
    shared: dict[tuple[int, int], int] = {}
    for status in _files_below(os.fspath(path)):
        if status.st_nlink == 1:
            unique += status.st_size
            continue
        key = (status.st_dev, status.st_ino)
        shared[key] = names = shared.get(key, 0) + 1
        if names == status.st_nlink:
            unique += status.st_size
    return unique


def _files_below(directory: str) -> Iterator[os.stat_result]:
    """Everything in a directory that is none, at whatever depth."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(entry.path)
            else:
                yield entry.stat(follow_symlinks=False)


def fitting(name: str, things: Sequence[_Thing], ids: Sequence[str]) -> list[_Thing]:
    """What a name means: an id, else a sequence number, else the start of ids."""
    number = int(name) if re.fullmatch(r"[0-9]{1,18}", name) else None
    ways: tuple[Callable[[str], bool], ...] = (
        lambda release_id: release_id == name,
        lambda release_id: number is not None and parse_release_id(release_id) == number,
        lambda release_id: bool(name) and release_id.startswith(name),
    )
    for fits in ways:
        found = [thing for thing, release_id in zip(things, ids, strict=True) if fits(release_id)]
        if found:
            return found
    return []


def _must_be_id(release_id: str) -> None:
    if parse_release_id(release_id) is None:
        raise NoSuchRelease(f"{release_id!r} is no release's name")
