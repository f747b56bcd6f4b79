"""Making a release live: one atomic rename between two records of the history.

The order is what makes it safe, also against a power cut between any two calls: the release under its name
and both directories fsynced; ``intent`` recorded; the rename; the directories fsynced; ``commit`` recorded.
Recovery can tell from the intent and from what ``current`` is how far it came.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import trash
from spancat_daemon.release.current import CannotSwap, Kind, lead_to, supports_exchange
from spancat_daemon.release.durability import DURABLE
from spancat_daemon.release.folder import Release
from spancat_daemon.release.removal import remove_tree
from spancat_daemon.release.syncing import sync_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.history import History, Record
    from spancat_daemon.release.manifest import Manifest
    from spancat_daemon.release.staging import Staged

__all__ = ["CannotSwap", "Kind", "Swapped", "make_live", "publish", "supports_exchange"]


@dataclass(frozen=True, slots=True)
class Swapped:
    """A concluded swap.

    Attributes:
        record: the commit.
        release: what is live now.
        previous: what was live before, where it lies now.
        swap_s: seconds from the first rename until the new state was on stable storage.
    """

    record: Record
    release: Release
    previous: Release | None
    swap_s: float


def publish(  # each is a thing of its own, and all are named
    folder: DeploymentFolder,
    staged: Staged,
    manifest: Manifest,
    *,
    kind: Kind,
    history: History,
    details: Mapping[str, Any],
    monotonic: Callable[[], float],
    finish: Callable[[float], Mapping[str, Any]] = lambda swap_s: {"swap_s": swap_s},
    durability: Durability = DURABLE,
) -> Swapped:
    """Turn a sealed stage into a release and make it live. The folder is locked and recovered.

    Args:
        folder: where.
        staged: the stage; `seal` has made its bytes stay.
        manifest: the manifest in it.
        kind: how ``current`` is replaced.
        history: the folder's, open for writing.
        details: what the commit says besides the release, what it replaced, and their digests.
        monotonic: seconds, for measuring.
        finish: given `swap_s`, what else the commit says: what is only known at the end.
        durability: how renames are made to stay.

    Raises:
        CannotSwap: an earlier swap was not concluded, or ``current`` can't be replaced; nothing was changed.
        OSError: it failed. Either nothing was swapped, the release is gone and that was recorded, or, if only
            the end failed, ``current`` leads to it and the next recovery concludes it.
    """
    swap = _Swap(folder, kind, history, durability, monotonic, finish)
    before = swap.begin()
    final = folder.releases_path / manifest.id
    release = Release(manifest.id, manifest.sequence, final, manifest, live=False)
    data = swap.commit_data(release, before, {"trigger": manifest.trigger, **details})
    staged.path.rename(final)
    try:
        sync_all(
            [
                lambda: durability.sync_directory_at(folder.releases_path),
                lambda: durability.sync_directory_at(staged.path.parent),
            ],
            on=folder.path,
        )
        history.append("intent", data)
    except Exception:
        with contextlib.suppress(OSError):  # else recovery does it: no record names this release
            swap.discard(manifest.id)
        raise
    return swap.conclude(release, before, data, is_new=True)


def make_live(  # as publish
    folder: DeploymentFolder,
    release: Release,
    *,
    kind: Kind,
    history: History,
    details: Mapping[str, Any],
    monotonic: Callable[[], float],
    finish: Callable[[float], Mapping[str, Any]] = lambda swap_s: {"swap_s": swap_s},
    durability: Durability = DURABLE,
) -> Swapped:
    """Make an existing release live: a rollback, unless `details` gives another ``trigger``.

    Arguments and errors are those of `publish`; the release stays whatever happens.

    Raises:
        CannotSwap: also if it is live already, or its directory is gone.
    """
    swap = _Swap(folder, kind, history, durability, monotonic, finish)
    before = swap.begin()
    if folder.current_state().id == release.id:
        raise CannotSwap(f"{release.id} is live already", where=str(folder.path))
    if not (folder.releases_path / release.id).is_dir():
        raise CannotSwap(f"{release.id} is gone", where=str(folder.releases_path / release.id))
    data = swap.commit_data(release, before, {"trigger": "rollback", **details})
    history.append("intent", data)
    return swap.conclude(release, before, data, is_new=False)


class _Swap:
    """One swap under way."""

    def __init__(  # as publish
        self,
        folder: DeploymentFolder,
        kind: Kind,
        history: History,
        durability: Durability,
        monotonic: Callable[[], float],
        finish: Callable[[float], Mapping[str, Any]],
    ) -> None:
        self._folder = folder
        self._kind = kind
        self._history = history
        self._durability = durability
        self._monotonic = monotonic
        self._finish = finish
        self._began = 0.0

    def begin(self) -> Release | None:
        """Return what is live."""
        history = self._history
        history.resynchronise()
        pending = history.pending_intent()
        if pending is not None:
            where = str(history.path)
            raise CannotSwap(
                f"the swap of record {pending.seq} was not concluded", where=where, hint="recover first"
            )
        self._began = self._monotonic()
        return self._folder.live()

    def commit_data(
        self, release: Release, before: Release | None, details: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what intent and commit say; what the history's fold relies on is not left to `details`."""
        state = self._folder.current_state()
        outgoing = state.id
        if state.kind == "link" and not self._folder.current.exists():  # it dangles
            outgoing = None
        elif state.kind == "directory" and outgoing is None:  # its manifest is damaged
            outgoing = self._history.live
            if outgoing is None:
                raise CannotSwap(
                    "is a release with a damaged manifest, and the history doesn't know its name",
                    where=str(self._folder.current),
                    hint="restore its release.json, or move it away",
                )
        return {
            "model_sha256": release.manifest.model_sha256,
            "previous_model_sha256": before.manifest.model_sha256 if before else None,
            **details,
            "release": release.id,
            "previous_release": outgoing,
            "content_sha256": release.manifest.content_sha256,
            "previous_content_sha256": before.manifest.content_sha256 if before else None,
        }

    def conclude(
        self, release: Release, before: Release | None, data: Mapping[str, Any], *, is_new: bool
    ) -> Swapped:
        """Swap and commit, or abort; the intent is recorded."""
        folder, outgoing = self._folder, data["previous_release"]
        try:
            lead_to(folder, release.id, kind=self._kind, outgoing=outgoing, durability=self._durability)
        except Exception as error:
            live = folder.current_state()
            unknown = live.kind == "directory" and live.id is None  # it can't be read: recovery finds out
            if live.id != release.id and not unknown:
                self._abort(release.id, outgoing, error, is_new=is_new)
            raise
        swap_s = self._monotonic() - self._began
        record = self._history.append("commit", {**data, **self._finish(swap_s)})
        final = folder.current if self._kind == "exchange" else folder.releases_path / release.id
        if before is not None:
            before = replace(before, path=folder.releases_path / before.id, live=False)
        return Swapped(record, replace(release, path=final, live=True), before, swap_s)

    def discard(self, release_id: str) -> None:
        """Take a release away that never was live."""
        folder = self._folder
        thrown = trash.throw_away(folder.releases_path, release_id, folder.trash_path, self._durability)
        with contextlib.suppress(OSError):  # else recovery does it
            remove_tree(folder.trash_path / thrown)

    def _abort(self, release_id: str, outgoing: str | None, error: Exception, *, is_new: bool) -> None:
        """Take back what was done, as far as that goes; recovery does the rest."""
        reason = str(error).encode("utf-8", "backslashreplace").decode()
        with contextlib.suppress(OSError, SpancatDaemonError):
            if is_new:
                self.discard(release_id)
            data = {"release": release_id, "previous_release": outgoing, "reason": reason}
            self._history.append("abort", data)
