"""A deployment folder: where its parts are, what is live, which releases it holds, and who may change it."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from spancat_daemon.errors import SpancatDaemonError, UsageError
from spancat_daemon.release.durability import DURABLE
from spancat_daemon.release.history import History, rfc3339
from spancat_daemon.release.lock import hold
from spancat_daemon.release.manifest import parse_release_id
from spancat_daemon.release.survey import (
    CURRENT,
    RELEASES,
    Current,
    FolderBusy,
    NotOurs,
    Release,
    Survey,
    current_of,
    live_of,
    names_in,
    survey_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.lock import Lock

__all__ = [
    "Current",
    "DeploymentFolder",
    "FolderBusy",
    "NoSuchRelease",
    "NotOurs",
    "Release",
    "Survey",
    "unique_bytes",
]


_Thing = TypeVar("_Thing")


class NoSuchRelease(UsageError):  # noqa: N818  # names a state, as NoDaemon
    """No release, or more than one, has this name."""


class DeploymentFolder:
    """Paths and state of one deployment folder; holds nothing open.

    Reading needs no lock and never sees a state between two releases. Whoever changes anything holds `lock`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.current = path / CURRENT
        self.releases_path = path / RELEASES
        self.state_path = path / ".spancat-daemon"
        self.staging_path = self.state_path / "staging"
        self.incoming_path = self.state_path / "incoming"
        self.trash_path = self.state_path / "trash"
        self.rejected_path = self.state_path / "rejected"
        self.pins_path = self.state_path / "pins"
        self.history_path = self.state_path / "history.jsonl"
        self.lock_path = self.state_path / "lock"
        self.announced_path = self.state_path / "announced"

    def prepare(self, durability: Durability = DURABLE) -> None:
        """Create what is missing, durably; does nothing to a folder that is complete.

        Raises:
            NotOurs: ``current`` or the folder itself is something else; nothing was created.
            OSError: a directory can't be created or made to stay.
        """
        self.current_state()
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

    def survey(self) -> Survey:
        """Look at everything; see `survey_of`."""
        return survey_of(self.path)

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
        survey = self.survey()
        releases = survey.releases
        if re.fullmatch(r"@[0-9]+", name):
            steps = int(name[1:])
            live = next((release for release in releases if release.live), None)
            back = [live, *self.before_live(history=history, survey=survey)]
            if steps < len(back) and (found := back[steps]) is not None:
                return found
            raise NoSuchRelease(
                f"there is no {name}: only {len(back) - 1} releases lie before the live one",
                where=str(self.path),
            )
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
        back = self.before_live(history=history)
        return back[0] if back else None

    def before_live(self, *, history: History | None = None, survey: Survey | None = None) -> list[Release]:
        """Return the releases that one would go back through from the live one: ``@1``, ``@2``, ….

        By the history first, then by sequence, below those. The live one itself may be damaged beyond
        recognition.
        """
        survey = survey or self.survey()
        history = history or History.reading(self.history_path)
        live = survey.current.id or history.live
        if live is None:
            return []
        by_id = {release.id: release for release in survey.releases}
        order = list(history.live_order())
        if live in order:
            del order[order.index(live) :]
        back = [by_id[name] for name in reversed(order) if name in by_id]
        lowest = min([parse_release_id(live) or 0, *(release.sequence for release in back)])
        return back + [release for release in survey.releases if release.sequence < lowest]

    def next_sequence(self, *, history: History | None = None) -> int:
        """Return a number higher than that of anything that is or ever was in this folder."""
        highest = (history or History.reading(self.history_path)).highest
        names = [self.current_state().id or ""]
        for directory in (self.releases_path, self.staging_path, self.trash_path, self.rejected_path):
            names += names_in(directory)
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
    names: dict[tuple[int, int], int] = {}
    sizes: dict[tuple[int, int], os.stat_result] = {}
    for directory, _, files in os.walk(path):
        for file in files:
            status = Path(directory, file).lstat()
            key = (status.st_dev, status.st_ino)
            names[key] = names.get(key, 0) + 1
            sizes[key] = status
    return sum(status.st_size for key, status in sizes.items() if status.st_nlink <= names[key])


def fitting(name: str, things: Sequence[_Thing], ids: Sequence[str]) -> list[_Thing]:
    """What a name means: an id, else a sequence number, else the start of ids."""
    number = int(name) if re.fullmatch(r"[0-9]+", name) else None
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
