"""One target's deployment folder, held: locked, recovered, its history open for writing.

The daemon's workers and the commands that act without a daemon both work through :class:`Deployment`; it is
where what happened becomes a structured event.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from spancat_daemon.checkpoint.settle import Unsettled, file_clock_ns
from spancat_daemon.chronicle import Chronicle
from spancat_daemon.errors import Moved, Rejected, SpancatDaemonError, UsageError, Vanished
from spancat_daemon.release import lease
from spancat_daemon.release.copying import UnreadableSourceError
from spancat_daemon.release.durability import DURABLE, Durability
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.history import History
from spancat_daemon.release.pruning import prune
from spancat_daemon.release.recovery import recover
from spancat_daemon.release.retention import decide
from spancat_daemon.release.staging import Abandoned
from spancat_daemon.release.swap import make_live
from spancat_daemon.snapshot import UNMEASURED, Known, Request, Tools, Unchanged, overwrite_details, take

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.config.expand import Target
    from spancat_daemon.config.model import Keep
    from spancat_daemon.observe.logs import Logger
    from spancat_daemon.release.folder import Release
    from spancat_daemon.release.retention import Verdict
    from spancat_daemon.snapshot import Trigger

Status = Literal["published", "unchanged", "unsettled", "vanished", "rejected", "failed", "abandoned"]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one request for a snapshot.

    Attributes:
        status: how it ended.
        release: id of the release that is live now, if one is.
        reason: why it was not published, for a user; empty if it was.
        retry_after_s: look again after this long even if nothing changes; None: only a change helps.
        kind: of an unsettled checkpoint, what is the matter: "torn", "incomplete" or "busy".
        tree: the stamps that were judged, where the checkpoint could be read.
    """

    status: Status
    release: str | None
    reason: str = ""
    retry_after_s: float | None = None
    kind: str = ""
    tree: Tree | None = None


class Deployment:
    """A target's folder while this process holds it; a context manager.

    All methods may be called from any thread: one at a time is let in. Entering (or :meth:`hold`) creates
    the folder where it is missing, takes its lock, repairs what a crash left and logs what the log lacks.

    Raises:
        FolderBusy: another process holds the folder (on entering).
        SpancatDaemonError: the folder is not one of ours, or its history is broken (on entering).
        OSError: it can't be created, read or written (on entering).
    """

    def __init__(
        self,
        target: Target,
        *,
        min_free_bytes: int,
        log: Logger,
        has_logged: Callable[[str, str], bool] = lambda _rule, _sha256: False,
        holder: str = "spancat-daemon",
        monotonic: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = file_clock_ns,
        durability: Durability = DURABLE,
    ) -> None:
        """Prepares to hold the folder of `target`; `has_logged` tells if the log file has a history line."""
        self.target = target
        self.folder = DeploymentFolder(target.deploy)
        self.min_free_bytes = min_free_bytes
        self._chronicle = Chronicle(target, self.folder, log=log, has_logged=has_logged)
        self._holder = holder
        self._stop = threading.Event()
        self._tools = Tools(
            monotonic=monotonic,
            now_ns=now_ns,
            durability=durability,
            on_recovered=lambda recovered: self._chronicle.recovered(recovered, self._writable()),
            on_settled=lambda _tree: None,
            on_staging=lambda: None,
            abandoned=self._stop.is_set,
        )
        self._mutex = threading.RLock()
        self._held = ExitStack()
        self._is_held: Callable[[], bool] = lambda: False
        self._history: History | None = None
        self._known = Known()
        self._known_of = target
        self._judged: Tree | None = None

    def __enter__(self) -> Self:
        self.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def hold(self) -> None:
        """Takes the folder, if this process does not hold it already; raises as entering does.

        A folder that was deleted, moved or replaced is held no more, whatever lock is left of it: then what
        is there now is taken. Parts of it that are missing are made again.
        """
        with self._mutex:
            lost = self._history is not None and not self._is_held()
            if lost:
                self._held.close()
                self._known = Known()
            if self._history is not None:
                self.folder.prepare(self._tools.durability)
                return
            if self._stop.is_set():
                raise Abandoned("the deployment was given up", where=str(self.folder.path))
            with ExitStack() as held:
                self.folder.prepare(self._tools.durability)
                self._is_held = held.enter_context(self.folder.lock(self._holder))
                history = held.enter_context(
                    History.open(
                        self.folder.history_path, durability=self._tools.durability, clock=self._tools.now
                    )
                )
                held.callback(self._forget_history)
                self._history = history
                self.recover()
                self._held = held.pop_all()
            if lost:
                self._chronicle.held_anew(self.live_id())

    def close(self) -> None:
        """Lets the folder go once the work under way has ended."""
        with self._mutex:
            self._held.close()

    def _forget_history(self) -> None:
        self._history = None

    def abandon(self) -> None:
        """Makes a snapshot under way give up soon, and refuses further ones; for a stop."""
        self._stop.set()

    def retarget(self, target: Target, *, min_free_bytes: int) -> None:
        """Takes over the settings of a reloaded rule with the same folder, from the next snapshot on."""
        self.target, self.min_free_bytes = target, min_free_bytes

    def recover(self) -> None:
        """Repairs what a crash left in the folder and logs each swap that the log has not seen."""
        with self._mutex:
            history = self._writable()
            self._chronicle.missed(history)  # before recovery makes further commits
            recovered = recover(
                self.folder, history=history, durability=self._tools.durability, kind=self.target.watch.swap
            )
            self._chronicle.recovered(recovered, history)

    # -- snapshots ------------------------------------------------------------------------------------------

    def snapshot(self, trigger: Trigger, *, force: bool = False, since_s: float | None = None) -> Result:
        """Takes the checkpoint into production; every outcome is logged, nothing but bugs is raised.

        Args:
            trigger: what asked for it.
            force: publish even if nothing changed, or the content was rolled back.
            since_s: monotonic time at which the asking began; now, if it is not given.
        """
        began = self._tools.monotonic() if since_s is None else since_s
        with self._mutex:
            try:
                self.hold()
                return self._snapshot(Request(trigger, force, began))
            except Vanished as error:
                return self._result("vanished", error)
            except Moved as error:
                return self._result("unsettled", error, kind="busy", retry_after_s=0.05)
            except Abandoned as error:
                return self._result("abandoned", error)
            except Rejected as error:
                return self._rejected(error, trigger)
            except (OSError, SpancatDaemonError) as error:
                return self._failed(error, trigger)

    def _snapshot(self, request: Request) -> Result:
        target, self._judged = self.target, None
        if target != self._known_of:
            self._known_of, self._known = target, Known()
            self._chronicle.target = target
        outcome = take(
            request,
            target,
            self.folder,
            self._writable(),
            min_free_bytes=self.min_free_bytes,
            known=self._known,
            tools=replace(
                self._tools,
                on_settled=lambda tree: self._judge(request, tree),
                on_staging=lambda: self._chronicle.started(request),
            ),
        )
        if isinstance(outcome, Unsettled):
            if outcome.tree != self._known.glimpse:
                now_s = self._tools.monotonic()
                self._known = replace(self._known, glimpse=outcome.tree, glimpsed_s=now_s)
            return Result(
                "unsettled",
                self.live_id(),
                outcome.reason,
                retry_after_s=outcome.retry_after_s,
                kind=outcome.kind,
                tree=outcome.tree,
            )
        if isinstance(outcome, Unchanged):
            self._known = Known(live=(outcome.tree, outcome.live))
            self._chronicle.unchanged(request, outcome)
            return Result("unchanged", outcome.live, "the content is live already", tree=outcome.tree)
        self._known = Known(live=(outcome.tree, outcome.swapped.release.id))
        self._chronicle.swapped(outcome.swapped.record)
        self._retain()
        return Result("published", outcome.swapped.release.id, tree=outcome.tree)

    # -- what is live ---------------------------------------------------------------------------------------

    def rollback(self, name: str | None, *, leaving: str | None = None) -> Mapping[str, Any]:
        """Makes the previous release, or the named one, live; what it leaves isn't promoted again unforced.

        Args:
            name: which; None: the one that was live before.
            leaving: id of the release that whoever asks wants to get away from; another one may have gone
                live since, and the one before it is just that one.

        Returns:
            The payload of ``release.overwrite``.

        Raises:
            UsageError: there is nothing to roll back to, or the named release is live already.
            NoSuchRelease: there is no release of that name.
            OSError: the folder could not be written; what was live still is, or the history says what is.
        """
        began = self._tools.monotonic()
        with self._mutex:
            history = self._ready()
            live = self.folder.live()
            target = (
                self.folder.previous(history=history)
                if name is None
                else self.folder.find(name, history=history)
            )
            if live is None or target is None:
                raise UsageError(
                    "there is no earlier release to roll back to",
                    where=str(self.folder.path),
                    hint="`list` shows what there is",
                )
            if target.id == live.id:
                raise UsageError(f"{target.id} is live already", where=str(self.folder.path))
            if leaving is not None and live.id != leaving:
                raise SpancatDaemonError(
                    f"{live.id} went live meanwhile, in place of {leaving}",
                    where=str(self.folder.path),
                    hint="roll back again if it is to go too, or name the release to go back to",
                )
            swapped = make_live(
                self.folder,
                target,
                kind=self.target.watch.swap,
                history=history,
                details=overwrite_details(target.manifest, live.manifest)
                | {
                    "rule": self.target.rule,
                    "trigger": "rollback",
                    "forced": True,
                    "bytes_written": 0,
                    "settle_s": 0.0,
                    "stage_s": 0.0,
                    "verify_s": 0.0,
                    **UNMEASURED,
                },
                durability=self._tools.durability,
                monotonic=self._tools.monotonic,
                finish=lambda swap_s: {
                    "swap_s": round(swap_s, 6),
                    "total_s": round(self._tools.monotonic() - began, 6),
                },
            )
            self._known = Known()
            self._chronicle.rolled_back(swapped)
            return self._chronicle.swapped(swapped.record)

    def pin(self, name: str) -> str:
        """Makes retention leave a release alone; returns its id."""
        return self._pin(name, pinned=True)

    def unpin(self, name: str) -> str:
        """Gives a release back to retention; returns its id."""
        return self._pin(name, pinned=False)

    def _pin(self, name: str, *, pinned: bool) -> str:
        with self._mutex:
            history = self._ready()
            release = self.folder.find(name, history=history)
            if (release.id in self.folder.pins()) != pinned:
                (self.folder.pin if pinned else self.folder.unpin)(release.id)
                kind = "pinned" if pinned else "unpinned"
                history.append(kind, {"release": release.id})
                self._chronicle.pinned(release.id, pinned=pinned)
            return release.id

    def prune(self, *, dry_run: bool = False) -> list[Mapping[str, Any]]:
        """Applies retention now.

        Returns:
            ``{id, kept_because, pruned}`` of each release, newest first; in a dry run `pruned` says what
            would be.
        """
        with self._mutex:
            self._ready()
            verdicts = self.verdicts()
            gone = {verdict.release.id for verdict in verdicts if not verdict.kept_because}
            if not dry_run:
                gone = {release.id for release in self._prune(verdicts)}
            return [
                {
                    "id": verdict.release.id,
                    "kept_because": list(verdict.kept_because),
                    "pruned": verdict.release.id in gone,
                }
                for verdict in verdicts
            ]

    def verdicts(self) -> list[Verdict]:
        """What retention says of each release now, newest first."""
        return retention_verdicts(
            self.folder, self.target.watch.keep, self._tools.now(), history=self._writable()
        )

    def _retain(self) -> None:
        try:
            self._prune(self.verdicts())
        except (OSError, SpancatDaemonError) as error:
            self._chronicle.prune_failed(error)

    def _prune(self, verdicts: Sequence[Verdict]) -> list[Release]:
        gone = prune(self.folder, verdicts, history=self._writable(), durability=self._tools.durability)
        self._chronicle.pruned(gone)
        return gone

    # -- outcomes -------------------------------------------------------------------------------------------

    def _rejected(self, error: Rejected, trigger: Trigger) -> Result:
        self._chronicle.rejected(error, trigger, self._judged)
        # What could not be read may be readable the next time, though nothing has changed.
        if self._judged is not None and not isinstance(error.__cause__, (OSError, UnreadableSourceError)):
            self._known = replace(self._known, refused=(self._judged, error))
        return self._result("rejected", error)

    def _failed(self, error: OSError | SpancatDaemonError, trigger: Trigger) -> Result:
        return Result("failed", self.live_id(), self._chronicle.failed(error, trigger), tree=self._judged)

    def _result(self, status: Status, error: SpancatDaemonError, **more: Any) -> Result:
        return Result(status, self.live_id(), str(error), tree=self._judged, **more)

    def _judge(self, request: Request, tree: Tree) -> None:
        self._judged = tree
        known = [seen[0] for seen in (self._known.live, self._known.refused) if seen is not None]
        if request.trigger == "change" and tree not in known:
            self._chronicle.changed(tree)

    def live_id(self) -> str | None:
        """The id of the live release; None if there is none, or the folder can't be read."""
        try:
            live = self.folder.live()
        except (OSError, SpancatDaemonError):
            return None
        return live.id if live else None

    def _ready(self) -> History:
        """The history of a folder that is held, and in which nothing is left to be concluded."""
        self.hold()
        self.recover()
        return self._writable()

    def _writable(self) -> History:
        if self._history is None:
            raise SpancatDaemonError("the deployment folder was let go", where=str(self.folder.path))
        return self._history


def retention_verdicts(
    folder: DeploymentFolder, keep: Keep, now: datetime, *, history: History | None = None
) -> list[Verdict]:
    """What retention says of each release of a folder, newest first; only reads."""
    releases, previous = folder.releases(), folder.previous(history=history)
    live = next((release for release in releases if release.live), None)
    return decide(
        releases,
        keep,
        live_id=live.id if live else None,
        previous_id=previous.id if previous else None,
        pinned=folder.pins(),
        leased=lambda release: lease.is_leased(release.path),
        now=now,
    )
