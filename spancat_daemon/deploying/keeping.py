"""Which releases of a held folder stay: pins, retention, and how many rejected snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import rejects
from spancat_daemon.release.pruning import prune
from spancat_daemon.release.verdicts import verdicts_on

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime

    from spancat_daemon.config.model import Watch
    from spancat_daemon.deploying.chronicle import Chronicle
    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.history import History


class Keeping:
    """Retention of one folder; any thread may ask for it.

    Raises:
        FolderBusy, SpancatDaemonError, OSError: from each method but `retain`, as of holding the folder.
    """

    def __init__(
        self,
        folder: DeploymentFolder,
        chronicle: Chronicle,
        *,
        alone: AbstractContextManager[object],
        ready: Callable[[], History],
        watch: Callable[[], Watch],
        now: Callable[[], datetime],
        durability: Durability,
    ) -> None:
        """Keeps the releases of a folder.

        Args:
            folder: which.
            chronicle: told what goes and what stays.
            alone: the mutex of all work on the folder.
            ready: the history of the folder, once that is held and recovered.
            watch: the rule as it is now.
            now: the wall clock in UTC.
            durability: how removals are made to stay.
        """
        self._folder = folder
        self._chronicle = chronicle
        self._alone = alone
        self._ready = ready
        self._watch = watch
        self._now = now
        self._durability = durability

    def pin(self, name: str) -> str:
        """Makes retention leave a release alone; returns its id."""
        return self._pin(name, pinned=True)

    def unpin(self, name: str) -> str:
        """Gives a release back to retention; returns its id."""
        return self._pin(name, pinned=False)

    def _pin(self, name: str, *, pinned: bool) -> str:
        with self._alone:
            history = self._ready()
            release = self._folder.find(name, history=history)
            if (release.id in self._folder.pins()) != pinned:
                (self._folder.pin if pinned else self._folder.unpin)(release.id)
                history.append("pinned" if pinned else "unpinned", {"release": release.id})
                self._chronicle.pinned(release.id, pinned=pinned)
            return release.id

    def prune(self, *, dry_run: bool = False) -> list[Mapping[str, Any]]:
        """Applies retention now.

        Returns:
            ``{id, kept_because, pruned}`` of each release, newest first; in a dry run `pruned` says what
            would be.
        """
        with self._alone:
            history, watch = self._ready(), self._watch()
            verdicts = verdicts_on(self._folder, watch.keep, self._now(), history=history)
            gone = {verdict.release.id for verdict in verdicts if not verdict.kept_because}
            if not dry_run:
                rejects.let_go(self._folder, last=watch.keep_rejected, durability=self._durability)
                pruned = prune(self._folder, verdicts, history=history, durability=self._durability)
                self._chronicle.pruned(pruned)
                gone = {release.id for release in pruned}
            return [
                {
                    "id": verdict.release.id,
                    "kept_because": list(verdict.kept_because),
                    "pruned": verdict.release.id in gone,
                }
                for verdict in verdicts
            ]

    def retain(self, history: History) -> None:
        """Applies retention after a swap, with the folder held; never raises: the next one does more."""
        keep = self._watch().keep
        if keep.empty:
            return
        try:
            verdicts = verdicts_on(self._folder, keep, self._now(), history=history)
            pruned = prune(self._folder, verdicts, history=history, durability=self._durability)
            self._chronicle.pruned(pruned)
        except (OSError, SpancatDaemonError) as error:
            self._chronicle.prune_failed(error)
