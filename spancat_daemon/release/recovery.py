"""Bringing a folder and its history into agreement, however the last one who worked on it ended.

Every step can be interrupted and done again: what a step finds is decided by what is on disk and in the
history alone, and each step leaves a state that the same rules accept. In order:

1. Links under temporary names, and links that an exchange left in ``releases/``, are removed; a release
   that an interrupted exchange left under another's name gets its own.
2. An intent without outcome: if ``current`` leads to its release, the swap is made durable and committed
   with the intent's data and ``recovered: true``; otherwise the release is discarded, unless it existed
   before, and the intent aborted.
3. A release that no record names, newer than all that are named: its publisher died before the intent, and
   it is discarded. Any other unknown release means that the history was lost or cut off: it is adopted.
4. ``current`` absent or dangling: it leads again to what was live last, or else to the newest whole release
   that was. ``current`` changed by hand: that is accepted as a rollback is, so that what it left isn't
   promoted again unforced. Both are recorded (``recovered``).
5. Releases that were removed without a record get it (``pruned``); staging and trash are emptied, and what
   was saved to be taken, by processes that have ended, is removed.

Where names alone show that there is nothing to do, and this process has seen every release whole before, that
is all it looks at: the recovery before each publish takes as long with thousands of releases as with ten.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import incoming, trash
from spancat_daemon.release.current import TEMPORARY_LINK, Kind, lead_to, renew
from spancat_daemon.release.durability import DURABLE, rename_noreplace
from spancat_daemon.release.manifest import BadManifest
from spancat_daemon.release.survey import Brief, directories_in_releases, names_in, read_release

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.folder import DeploymentFolder, Release, Survey
    from spancat_daemon.release.history import History, Record
    from spancat_daemon.release.survey import Current

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery did.

    Attributes:
        actions: what it did, each a sentence for people; empty if all was well.
        record: the last ``commit``, ``abort`` or ``recovered`` it appended.
        records: all it appended, ``pruned`` too.
        foreign: what lies in ``releases/`` and is not ours; it was left alone.
        broken: releases whose manifest can't be read, with the reason; they were left alone.
    """

    actions: tuple[str, ...]
    record: Record | None
    records: tuple[Record, ...]
    foreign: tuple[Path, ...]
    broken: tuple[tuple[Path, str], ...]


def recover(
    folder: DeploymentFolder,
    *,
    history: History,
    durability: Durability = DURABLE,
    kind: Kind = "symlink",
    spare: Collection[str] = (),
) -> Recovered:
    """Do everything above. The folder is prepared and locked.

    Args:
        folder: which.
        history: its history, open for writing.
        durability: how renames are made to stay.
        kind: how ``current`` is made where it is missing.
        spare: names in staging that somebody of this process still works on.

    Raises:
        NotOurs: ``current`` is something else; nothing was changed.
        HistoryBroken: see `History.open`.
        OSError: something could not be done; doing it again goes on from there.
    """
    history.resynchronise()
    if _is_in_order(folder, history, spare):
        return Recovered((), None, (), (), ())
    recovery = _Recovery(folder, history, durability, kind)
    recovery.tidy_names()
    recovery.conclude_intent()
    recovery.settle_unknown()
    recovery.settle_current()
    recovery.settle_thrown()
    recovery.record_missing()
    recovery.empty(spare)
    survey = recovery.survey
    outcomes = [record for record in recovery.records if record.kind != "pruned"]
    return Recovered(
        tuple(recovery.actions),
        outcomes[-1] if outcomes else None,
        tuple(recovery.records),
        survey.foreign,
        survey.broken,
    )


def _is_in_order(folder: DeploymentFolder, history: History, spare: Collection[str]) -> bool:
    """Whether no step would find anything to do, told by names alone.

    Manifests are only read of releases that this process has not looked at since it holds the folder. So one
    that can't be read, or says another name, is found when the folder is taken.
    """
    current = folder.current_state()
    if history.repaired or history.pending_intent() is not None or folder.announced() > history.seq:
        return False
    if current.id is None or current.id != history.live:
        return False
    found, others = directories_in_releases(folder.path)
    if others or found != history.released() - ({current.id} if current.kind == "directory" else set()):
        return False
    if any(name.startswith(TEMPORARY_LINK) for name in names_in(folder.path)):
        return False
    if names_in(folder.trash_path) or names_in(folder.incoming_path):
        return False
    if not set(names_in(folder.staging_path)) <= set(spare):
        return False
    return folder.memory.has_met(folder.path, found)


def faults(release: Release) -> list[str]:
    """Compare a release with its manifest, by reading every file; empty if it is whole.

    Raises:
        OSError: a file can't be read.
    """
    found: list[str] = []
    for path, digest in release.manifest.files.items():
        try:
            fd = os.open(release.path / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            found.append(f"{path} is missing")
            continue
        try:
            actual = hashlib.sha256()
            while chunk := os.read(fd, _CHUNK):
                actual.update(chunk)
        finally:
            os.close(fd)
        if actual.hexdigest() != digest.sha256:
            found.append(f"{path} has changed")
    return found


def _is_whole(release: Brief) -> bool:
    try:
        return not faults(read_release(release.path, live=release.live))
    except BadManifest:
        return False


class _Recovery:
    """One recovery under way; `actions` and `records` grow with its steps."""

    def __init__(
        self, folder: DeploymentFolder, history: History, durability: Durability, kind: Kind
    ) -> None:
        self.folder = folder
        self.history = history
        self.durability = durability
        self.kind = kind
        self.actions: list[str] = []
        self.records: list[Record] = []
        self._survey: Survey[Brief] | None = None
        if history.repaired:
            self.actions.append(f"history: {history.repaired}")
            history.repaired = ""

    @property
    def survey(self) -> Survey[Brief]:
        """What the folder holds now; looked at again after each change."""
        if self._survey is None:
            self._survey = self.folder.outline()
        return self._survey

    def _changed(self) -> None:
        self._survey = None

    def tidy_names(self) -> None:
        folder = self.folder
        survey = self.survey
        for name in names_in(folder.path):
            path = folder.path / name
            if name.startswith(TEMPORARY_LINK) and path.is_symlink():
                path.unlink()
                self.actions.append(f"removed {name}, left by an interrupted swap")
        for name in survey.stray_links:
            self._changed()
            (folder.releases_path / name).unlink()
            self.actions.append(f"removed the link releases/{name}, left by an interrupted swap")
        for name in survey.misnamed:
            release = next(r for r in survey.releases if r.path == folder.releases_path / name)
            if not release.live and not (folder.releases_path / release.id).exists():
                self._changed()
                # Not made to stay: until something that is, is built on it, the next recovery does it again.
                rename_noreplace(release.path, folder.releases_path / release.id)
                self.actions.append(f"renamed releases/{name} to {release.id}, which it holds")

    def conclude_intent(self) -> None:
        intent = self.history.pending_intent()
        if intent is None:
            return
        release: str = intent.data["release"]
        current = self.folder.current_state()
        if (current.id == release and self._is_there(release)) or self._must_be_current(current, intent):
            self._changed()
            renew(self.folder, current, self.durability)
            self._record("commit", {**intent.data, "recovered": True})
            self.actions.append(f"committed {release}: it was live, and its commit was missing")
            return
        if release not in self.history.released():
            self._discard(release)
        reason = "the swap was interrupted before it was made"
        self._record(
            "abort",
            {"release": release, "previous_release": intent.data.get("previous_release"), "reason": reason},
        )
        self.actions.append(f"aborted {release}: {reason}")

    def settle_unknown(self) -> None:
        survey = self.survey
        known = self.history.released()
        unknown = [release for release in survey.releases if release.id not in known]
        announced = self.folder.announced()
        cut_off = announced > self.history.seq
        if not unknown and not cut_off:
            return
        if len(unknown) == 1 and not cut_off and not unknown[0].live:
            (release,) = unknown
            if release.sequence > self.history.highest:
                self._discard(release.id)
                self.actions.append(f"discarded {release.id}: its publisher ended before it went live")
                return
        adopted = sorted(release.id for release in unknown)
        live = next((release for release in survey.releases if release.live), None)
        if cut_off:
            reason = f"the history was lost or cut off: record {announced} was logged, and isn't there"
        else:
            reason = "the history doesn't know these releases: it was lost, or they were put there by hand"
        self._record("recovered", self._recovered(live, reason, adopted=adopted))
        self.actions.append(f"adopted {', '.join(adopted)}: {reason}" if adopted else reason)
        if cut_off:
            self.folder.mark_announced(self.history.seq)

    def settle_current(self) -> None:
        survey = self.survey
        current, last = survey.current, self.history.live
        if current.kind == "directory" and current.id is None:
            return  # its manifest is damaged: nothing can be told, and what is live stays live
        if current.id is not None and self._is_there(current.id):
            if current.id != last:
                live = next((release for release in survey.releases if release.live), None)
                left = next((release for release in survey.releases if release.id == last), None)
                self._settle("current was changed by hand", live, live_id=current.id, left=left)
            return
        if current.kind == "absent" and last is None and not survey.releases:
            return
        missing = "is missing" if current.kind == "absent" else f"leads to {current.id}, which is gone"
        for release in self._candidates(survey):
            if _is_whole(release):
                self._changed()
                lead_to(self.folder, release.id, kind=self.kind, outgoing=None, durability=self.durability)
                self._settle(f"current {missing}: it leads to {release.id} again", release)
                return
        if last is not None:
            self._settle(f"current {missing}, and no whole release is left", None)

    def settle_thrown(self) -> None:
        """Whoever threw it away may have been killed before that stayed so: it would come back, emptied."""
        if names_in(self.folder.trash_path):
            self.durability.sync_directory_at(self.folder.releases_path)
            self.durability.sync_directory_at(self.folder.rejected_path)

    def record_missing(self) -> None:
        survey = self.survey
        there = {release.id for release in survey.releases} | {path.name for path, _ in survey.broken}
        if survey.current.kind == "directory":  # its manifest is damaged, or could not be read just then
            there.add(survey.current.id or self.history.live or "")
        thrown = {trash.original_name(name) for name in names_in(self.folder.trash_path)}
        for release in sorted(self.history.released() - there):
            reason = "retention" if release in thrown else "found missing"
            self._record("pruned", {"release": release, "reason": reason, "recovered": True})
            self.actions.append(f"recorded that {release} is gone ({reason})")

    def empty(self, spare: Collection[str]) -> None:
        for directory in (self.folder.staging_path, self.folder.trash_path):
            if names := trash.empty(directory, spare=spare):
                self.actions.append(f"emptied {directory.name}: {', '.join(names)}")
        if names := incoming.sweep(self.folder.incoming_path):
            self.actions.append(f"removed what was saved and not taken: {', '.join(names)}")

    def _candidates(self, survey: Survey[Brief]) -> list[Brief]:
        """Return the releases that may be made live again, what was live last first."""
        order = self.history.live_order()
        places = {release_id: place for place, release_id in enumerate(order, 1)}

        def rank(release: Brief) -> tuple[bool, int, int]:
            last = release.id == self.history.live
            return last, places.get(release.id, 0), release.sequence

        return sorted(survey.releases, key=rank, reverse=True)

    def _settle(
        self, reason: str, live: Brief | None, *, live_id: str | None = None, left: Brief | None = None
    ) -> None:
        data = self._recovered(live, reason, live_id=live_id)
        if left is not None:
            data["previous_content_sha256"] = left.content_sha256
        self._record("recovered", data)
        self.actions.append(reason)

    def _recovered(
        self,
        live: Brief | None,
        reason: str,
        *,
        live_id: str | None = None,
        adopted: list[str] | None = None,
    ) -> dict[str, Any]:
        data: dict[str, Any] = {
            "trigger": "recovery",
            "reason": reason,
            "release": live.id if live else live_id,
            "previous_release": self.history.live,
            "content_sha256": live.content_sha256 if live else None,
            "model_sha256": live.model_sha256 if live else None,
        }
        return data | {"adopted": adopted} if adopted else data

    def _is_there(self, release_id: str) -> bool:
        """Whether what ``current`` leads to exists."""
        state = self.folder.current_state()
        return state.kind == "directory" or (self.folder.releases_path / release_id).is_dir()

    def _must_be_current(self, current: Current, intent: Record) -> bool:
        """Whether the release of an intent is live where the manifest of what is live can't be read.

        Raises:
            SpancatDaemonError: it can't be told, for another one can't be read either.
        """
        if current.kind != "directory" or current.id is not None:
            return False
        survey, release = self.folder.survey(), intent.data["release"]
        if survey.current.id is not None:
            return bool(survey.current.id == release)
        elsewhere = {path.name for path, _ in survey.broken}
        elsewhere |= {found.id for found in survey.releases if not found.live}
        if release in elsewhere:
            return False
        if intent.data.get("previous_release") in {path.name for path, _ in survey.broken}:
            raise SpancatDaemonError(
                f"neither what is live nor what was before can be read: {survey.broken[0][1]}",
                where=str(self.folder.path),
                hint="once one of them can, it is told which of them is live",
            )
        return True

    def _discard(self, release_id: str) -> None:
        if (self.folder.releases_path / release_id).is_dir():
            self._changed()
            trash.throw_away(self.folder.releases_path, release_id, self.folder.trash_path, self.durability)

    def _record(self, kind: str, data: dict[str, Any]) -> None:
        self.records.append(self.history.append(kind, data))
