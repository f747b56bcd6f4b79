"""What somebody saved into the folder by hand: taken into production as a checkpoint is."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from spancat_daemon.checkpoint.settle import Unsettled
from spancat_daemon.deploying.snapshot import Known, Request, Unchanged, take
from spancat_daemon.errors import Moved, Rejected, SpancatDaemonError, Vanished
from spancat_daemon.release.staging import Abandoned, Lacking

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.checkpoint.contents import Contents
    from spancat_daemon.deploying.snapshot import Outcome
    from spancat_daemon.deploying.workplace import Workplace
    from spancat_daemon.release.history import History
    from spancat_daemon.release.survey import Release

_LONGEST_PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Saved:
    """A pipeline that is to become a release.

    Attributes:
        path: its directory, which nobody writes any more.
        origin: where it was saved from, in words that nothing else was ever saved with.
        component: the name of its span categorizer.
        contents: what of it; None: what the rule says.
        force: also if nothing changed, it was rejected or rolled back, or what is live is on probation.
        again: whether it may have become a release already.
    """

    path: Path
    origin: str
    component: str
    contents: Contents | None
    force: bool
    again: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """What became of it.

    Attributes:
        release: the release with its content, which is live.
        published: whether it was made of it; else its content was live already.
    """

    release: Release
    published: bool


class Saves:
    """Makes releases of what was saved, on the terms of the folder's rule; any thread may ask for it."""

    def __init__(self, place: Workplace) -> None:
        """Makes releases in a folder."""
        self._place = place
        self._turn = threading.Lock()  # else one would make the other's verification void, again and again

    def take(self, saved: Saved) -> Made:
        """Publish it. Once it is live, that is what is returned, whatever fails afterwards.

        Raises:
            Rejected: it must not go live.
            Moved: its files are not in the order in which spaCy writes them: the clock was set back.
            Vanished: it is not there any more.
            Abandoned: the deployment was given up.
            SpancatDaemonError, OSError: the folder can't be held or written; nothing is live that was not.
        """
        since_s = self._place.tools.monotonic()
        with self._turn:
            while True:
                found = self._attempt(saved, since_s)
                if isinstance(found, Made):
                    return found
                if isinstance(found, Unsettled) and found.kind != "busy":
                    raise Moved(found.reason, where=str(saved.path))
                pause_s = found.retry_after_s if found is not None else None
                time.sleep(min(pause_s or 0.0, _LONGEST_PAUSE_S))

    def _attempt(self, saved: Saved, since_s: float) -> Made | Unsettled | None:
        """Return what it became, or why it has to be tried again."""
        request = Request("manual", saved.force, since_s, origin=saved.origin)
        with self._place.alone:
            history = self._place.ready()
            if saved.again and (known := self._known(saved.origin, history)) is not None:
                return Made(known, published=True)
            if not request.forced and (waits_for := self._place.on_probation()) is not None:
                raise SpancatDaemonError(
                    f"{waits_for} is on probation", hint="force=True does not wait for it"
                )
            try:
                return self._conclude(request, self._take(request, saved, history))
            except Moved:
                return None
            except Rejected as error:
                self._place.chronicle.rejected(error, request, None)
                raise
            except (Abandoned, Vanished):
                raise
            except (OSError, SpancatDaemonError) as error:
                if (made := self._live_after_all(saved.origin)) is not None:
                    return Made(made, published=True)
                self._place.chronicle.failed(error, request.trigger)
                raise

    def _take(self, request: Request, saved: Saved, history: History) -> Outcome:
        rule = self._place.target()
        terms = {"component": saved.component, "contents": saved.contents or rule.watch.contents}
        watch = rule.watch.model_copy(update={**terms, "writer": "spacy"})
        target = replace(rule, watch=watch, source=saved.path)
        tools = replace(self._place.tools, on_staging=lambda: self._place.chronicle.started(request))
        for last in (False, True):
            try:
                return take(
                    request,
                    target,
                    self._place.folder,
                    history,
                    min_free_bytes=self._place.min_free_bytes(),
                    known=Known(),
                    tools=tools,
                )
            except Lacking:
                if last or not self._place.make_room():
                    raise
        raise AssertionError  # pragma: no cover  # the last time it returns or raises

    def _conclude(self, request: Request, outcome: Outcome) -> Made | Unsettled | None:
        if isinstance(outcome, Unsettled):
            return outcome
        if isinstance(outcome, Unchanged):
            self._place.chronicle.unchanged(request, outcome)
            live = self._place.folder.live()
            return Made(live, published=False) if live is not None else None
        self._place.published(outcome.swapped.record)
        return Made(outcome.swapped.release, published=True)

    def _live_after_all(self, origin: str) -> Release | None:
        """The release, if all that failed is what comes after it went live."""
        with suppress(OSError, SpancatDaemonError):
            return self._known(origin, self._place.ready())
        return None

    def _known(self, origin: str, history: History) -> Release | None:
        """The release that was made of what was saved there, if one was."""
        ids = [
            str(record.data["release"])
            for record in history.records()
            if record.kind == "commit" and record.data.get("source") == origin and record.data.get("saved")
        ]
        if not ids:
            return None
        for release in self._place.folder.releases():
            if release.id == ids[0]:
                return release
        raise SpancatDaemonError(
            f"it was published as {ids[0]}, which retention has let go since",
            where=str(self._place.folder.path),
        )
