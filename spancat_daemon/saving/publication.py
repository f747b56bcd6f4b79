"""Making a release of what was saved: here, or through the daemon that holds the folder."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.daemon.client import ControlClient, NoAnswer
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.errors import NoDaemon, SpancatDaemonError, UsageError
from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.folder import FolderBusy
from spancat_daemon.release.history import History
from spancat_daemon.release.lock import HeldElsewhere
from spancat_daemon.release.staging import Abandoned
from spancat_daemon.release.survey import CURRENT, Release
from spancat_daemon.verify.warm import WarmLoaders

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.deploying.saves import Made, Saved
    from spancat_daemon.deploying.whereabouts import Whereabouts
    from spancat_daemon.observe.logs import Logger
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.incoming import Entry
    from spancat_daemon.saving.terms import Terms

SAVE: Final = "/v1/save"
_LOOK_S: Final = 0.02
_SHORTEST_ASK_S: Final = 1.0


class Publication:
    """One release that is to be made; `make` and `stop` are for two threads.

    Whoever holds the folder meanwhile, and whatever becomes of them, it is made at most once: a daemon that
    dies may have made it, which the history tells.
    """

    def __init__(
        self,
        folder: DeploymentFolder,
        entry: Entry,
        saved: Saved,
        terms: Terms,
        *,
        until_s: float,
        log: Logger,
        whereabouts: Whereabouts | None,
    ) -> None:
        """Makes nothing yet.

        Args:
            folder: prepared.
            entry: what was saved, held.
            saved: what it is.
            terms: what the caller asks for.
            until_s: monotonic time until which others who hold the folder are waited for.
            log: told what happens here.
            whereabouts: what is to remember where the folder lies, if anything.
        """
        self._folder = folder
        self._entry = entry
        self._saved = saved
        self._terms = terms
        self._until_s = until_s
        self._log = log
        self._whereabouts = whereabouts
        self._stopping = threading.Event()
        self._deployment: Deployment | None = None

    def make(self) -> Release:
        """Make it; the entry is gone then, however this ends.

        Raises:
            FolderBusy: others held the folder for too long.
            NoAnswer: the daemon did not answer in time; it may still make it.
            Abandoned: it was stopped.
            UsageError: a daemon holds the folder, and so has its own terms.
            SpancatDaemonError, OSError: as `Saves.take`.
        """
        try:
            while True:
                try:
                    return self._here().release
                except FolderBusy as busy:
                    found = self._through_daemon(busy)
                if isinstance(found, Release):
                    self._remember()
                    return found
                self._wait(found)
        finally:
            self._remove()

    def stop(self) -> None:
        """Make it give up soon, if it is not done yet."""
        self._stopping.set()
        deployment = self._deployment
        if deployment is not None:
            deployment.abandon()
        self._remove()  # a daemon that reads it gives up, too

    def _here(self) -> Made:
        made: Made | None = None
        try:
            with (
                WarmLoaders(at_most=1) as loaders,
                Deployment(
                    self._terms.target(self._folder, self._saved.path),
                    min_free_bytes=0,
                    log=self._log,
                    loaders=loaders,
                    holder="save()",
                    whereabouts=self._whereabouts,
                    is_the_log=False,
                ) as deployment,
            ):
                self._deployment = deployment
                if self._stopping.is_set():
                    deployment.abandon()
                made = deployment.save(self._saved)
        except Exception:
            if made is None:
                raise
        return made

    def _through_daemon(self, busy: FolderBusy) -> Release | SpancatDaemonError:
        """Ask whoever holds the folder; what is no release is why to wait."""
        holder = busy.holder if isinstance(busy, HeldElsewhere) else None
        if holder is None or holder.control is None or holder.host != os.uname().nodename:
            return busy
        if asked := self._terms.of_a_rule:
            raise UsageError(
                f"{holder} holds the folder, so its rule says what holds, and not {' and '.join(asked)}",
                where=str(self._folder.path),
                hint="leave it out, and write it into the rule",
            )
        try:
            return self._ask(holder.control)
        except (NoDaemon, FolderBusy):  # it begins, or stops
            return busy
        except UsageError as error:
            if not error.reason.startswith("no such request"):
                raise
            raise SpancatDaemonError(
                f"{holder} holds the folder, is of another version, and can't be asked to save",
                where=str(self._folder.path),
                hint="restart it with the version that is installed here",
            ) from error
        except NoAnswer as error:
            self._saved = replace(self._saved, again=True)
            return error

    def _ask(self, control: Path) -> Release:
        saved = self._saved
        left_s = max(self._until_s - time.monotonic(), _SHORTEST_ASK_S)
        answer = ControlClient(control, timeout_s=left_s).call(
            "POST",
            SAVE,
            {
                "deploy": str(self._folder.path),
                "incoming": self._entry.name,
                "origin": saved.origin,
                "component": saved.component,
                "contents": saved.contents,
                "force": saved.force,
                "again": saved.again,
            },
        )
        return self._described(answer)

    def _described(self, answer: dict[str, Any]) -> Release:
        # From the answer and not from the folder: what was live may be no more, and even be gone
        manifest = manifests.parse(answer["manifest"].encode(), where=answer["path"])
        is_current = answer["path"].endswith(f"/{CURRENT}")
        path = self._folder.current if is_current else self._folder.releases_path / manifest.id
        return Release(manifest.id, manifest.sequence, path, manifest, live=True)

    def _wait(self, why: SpancatDaemonError) -> None:
        if time.monotonic() >= self._until_s:
            raise why
        if self._stopping.wait(_LOOK_S):
            raise Abandoned("the save was given up", where=str(self._folder.path))

    def _remember(self) -> None:
        """Remember where the folder lies, as a deployment does that is made here."""
        if self._whereabouts is not None:
            with suppress(OSError, SpancatDaemonError):
                self._whereabouts.remember(History.reading(self._folder.history_path))

    def _remove(self) -> None:
        with suppress(OSError):  # recovery does it then
            self._entry.remove()
