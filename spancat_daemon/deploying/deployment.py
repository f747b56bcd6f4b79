"""One target's deployment folder, held: locked, recovered, its history open for writing.

The daemon's workers and the commands that act without a daemon both work through :class:`Deployment`; it is
where what happened becomes a structured event.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Literal, Self

from spancat_daemon.checkpoint.settle import file_clock_ns
from spancat_daemon.deploying.chronicle import Chronicle
from spancat_daemon.deploying.follow_up import FollowUp
from spancat_daemon.deploying.holding import Holding
from spancat_daemon.deploying.keeping import Keeping
from spancat_daemon.deploying.looking import Looking, Result
from spancat_daemon.deploying.promotion import promote
from spancat_daemon.deploying.rollback import go_back
from spancat_daemon.deploying.saves import Saves
from spancat_daemon.deploying.snapshot import Tools
from spancat_daemon.deploying.workplace import Workplace
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release.durability import DURABLE, Durability
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.staging import Abandoned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from spancat_daemon.config.expand import Target
    from spancat_daemon.deploying.saves import Made, Saved
    from spancat_daemon.deploying.snapshot import Trigger
    from spancat_daemon.deploying.whereabouts import Whereabouts
    from spancat_daemon.observe.logs import Logger
    from spancat_daemon.release.history import History, Record
    from spancat_daemon.verify.warm import WarmLoaders

__all__ = ["Deployment", "Result"]


class Deployment:
    """A target's folder while this process holds it; a context manager.

    All methods may be called from any thread: one at a time is let in. Entering (or :meth:`hold`) creates
    the folder where it is missing, takes its lock, repairs what a crash left and logs what the log lacks.

    Raises:
        FolderBusy: another process holds the folder (on entering).
        SpancatDaemonError: the folder is not one of ours, or its history is broken (on entering).
        OSError: it can't be created, read or written (on entering).
    """

    def __init__(  # noqa: PLR0913  # all but the first are named, and most have a default
        self,
        target: Target,
        *,
        min_free_bytes: int,
        log: Logger,
        loaders: WarmLoaders,
        has_logged: Callable[[str, str], bool] = lambda _rule, _sha256: False,
        holder: str = "spancat-daemon",
        monotonic: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = file_clock_ns,
        durability: Durability = DURABLE,
        wake: Callable[[], None] = lambda: None,
        resumes: bool = False,
        whereabouts: Whereabouts | None = None,
        control: Path | None = None,
        is_the_log: bool = True,
    ) -> None:
        """Prepares to hold a folder.

        Args:
            target: whose.
            min_free_bytes: what must stay free on its file system.
            log: where it tells what happens.
            loaders: who loads snapshots to see them work.
            has_logged: whether the log file has a line of the history, by rule and digest.
            holder: who holds it, for people.
            monotonic: seconds that never step.
            now_ns: the wall clock that the file system stamps files with.
            durability: how bytes are made to stay.
            wake: told when a snapshot begins, or ends, to wait for something that leaves room for others.
            resumes: whether it takes up, on entering, what was to follow a swap and did not come to its end.
            whereabouts: what is remembered of where the folder lies, if anything.
            control: the socket that whoever finds the folder held can ask at.
            is_the_log: whether `log` is the one that is to tell each swap once.
        """
        self.target = target
        self.folder = DeploymentFolder(target.deploy)
        self.min_free_bytes = min_free_bytes
        self._chronicle = Chronicle(
            target, self.folder, log=log, has_logged=has_logged, is_the_log=is_the_log
        )
        self._resumes = resumes
        self._stop = threading.Event()
        self._tools = Tools(
            monotonic=monotonic,
            now_ns=now_ns,
            durability=durability,
            recover=self.recover,
            on_settled=lambda _tree: None,
            on_staging=lambda: None,
            abandoned=self._stop.is_set,
            loaders=loaders,
            verifying=lambda name: self._holding.let_others_in(name, wake),
        )
        self._holding = Holding(
            self.folder,
            self._chronicle,
            holder=holder,
            control=control,
            kind=lambda: self.target.watch.swap,
            now=self._tools.now,
            durability=durability,
            whereabouts=whereabouts,
        )
        self._follow_up = FollowUp(
            self.folder,
            self._holding,
            self._chronicle,
            go_back=lambda leaving, reason: self._go_back(None, leaving=leaving, reason=reason, unwell=True),
            wake=wake,
            monotonic=monotonic,
        )
        self.keeping = Keeping(
            self.folder,
            self._chronicle,
            alone=self._holding.alone,
            ready=self._ready,
            watch=lambda: self.target.watch,
            now=self._tools.now,
            durability=durability,
        )
        place = Workplace(
            folder=self.folder,
            chronicle=self._chronicle,
            alone=self._holding.alone,
            ready=self._ready,
            target=lambda: self.target,
            min_free_bytes=lambda: self.min_free_bytes,
            on_probation=lambda: self.on_probation,
            published=self._published,
            tools=self._tools,
        )
        self._saves = Saves(place)
        self._looking = Looking(place, held=self._held, live_id=self.live_id)

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
        with self._holding.alone:
            if self._stop.is_set():
                raise Abandoned("the deployment was given up", where=str(self.folder.path))
            if self._holding.take():
                self._looking.forget()
                self._resume()

    def close(self) -> None:
        """Lets the folder go once the work under way has ended, and all that is to follow a swap."""
        self._follow_up.wait()
        self._holding.let_go()

    def comes_to_rest(self, timeout_s: float) -> bool:
        """Whether nothing is under way any more, after so long at most; for a stop, after `abandon`."""
        until_s = time.monotonic() + timeout_s
        if not self._follow_up.wait(timeout_s):
            return False
        return self._holding.comes_to_rest(max(until_s - time.monotonic(), 0.0))

    def abandon(self) -> None:
        """Makes what is under way give up soon, and refuses further snapshots; for a stop."""
        self._stop.set()
        self._follow_up.stop()

    @property
    def verifying(self) -> bool:
        """Whether a snapshot is being verified, which takes no more of this process than a thread."""
        return self._holding.lets_others_in

    @property
    def on_probation(self) -> str | None:
        """Id of the live release, until it is seen to do well, or nobody asks."""
        return self._follow_up.on_probation

    def retarget(self, target: Target, *, min_free_bytes: int) -> None:
        """Takes over the settings of a reloaded rule with the same folder, from the next snapshot on.

        What is live and on probation is held to them, too.
        """
        before, self.target, self.min_free_bytes = self.target, target, min_free_bytes
        self._chronicle.target = target
        if target.watch != before.watch:
            self._follow_up.retarget(target.watch)

    def reachable_at(self, control: Path) -> None:
        """Tells those who find the folder held at which socket they can ask from now on."""
        self._holding.reachable_at(control)

    def recover(self) -> None:
        """Repairs what a crash left in the folder and logs each swap that the log has not seen."""
        self._holding.recover()
        self._resume()

    def _resume(self) -> None:
        if self._resumes:
            self._follow_up.resume(self.target.watch)

    def _ready(self) -> History:
        """The history of the folder, which is held and recovered."""
        self.hold()
        self.recover()
        return self._holding.history

    def _held(self) -> History:
        """The history of the folder, which is held; a swap that is live already may be on probation."""
        self.hold()
        if self._holding.history.pending_intent() is not None:
            self.recover()
        return self._holding.history

    # -- snapshots ------------------------------------------------------------------------------------------

    def snapshot(self, trigger: Trigger, *, force: bool = False, since_s: float | None = None) -> Result:
        """Takes the checkpoint into production; every outcome is logged, nothing but bugs is raised.

        Args:
            trigger: what asked for it.
            force: publish even if nothing changed, or the content was rejected; if it is "manual" also if it
                was rolled back, or what is live is on probation.
            since_s: monotonic time at which the asking began; now, if it is not given.
        """
        return self._looking.look(trigger, force=force, since_s=since_s)

    def save(self, saved: Saved) -> Made:
        """Makes what somebody saved live, on the terms of the rule; raises what `Saves.take` does."""
        return self._saves.take(saved)

    # -- what is live ---------------------------------------------------------------------------------------

    def rollback(self, name: str | None, *, leaving: str | None = None) -> Mapping[str, Any]:
        """Makes the previous release, or the named one, live; what it leaves isn't promoted again unforced.

        Args:
            name: which; None: the one that was live before, or the next one further back that is whole.
            leaving: id of the release that whoever asks wants to get away from.

        Returns:
            The payload of ``release.overwrite``.

        Raises:
            UsageError, NoSuchRelease, SpancatDaemonError, OSError: see `go_back`.
        """
        return self._go_back(name, leaving=leaving)

    def _go_back(
        self,
        name: str | None,
        *,
        leaving: str | None,
        trigger: Literal["rollback", "recovery"] = "rollback",
        reason: str = "",
        unwell: bool = False,
    ) -> Mapping[str, Any]:
        with self._holding.alone:
            history = self._ready()
            swapped = go_back(
                self.target,
                self.folder,
                history,
                name=name,
                leaving=leaving,
                tools=self._tools,
                passed_over=lambda passed, found: self._chronicle.corrupted(
                    passed.id, passed.path, [str(finding) for finding in found], live=False
                ),
                trigger=trigger,
                reason=reason,
                unwell=unwell,
            )
            self._looking.forget()
            return self._swapped(swapped.record)

    def promote(self, name: str, *, force: bool, reason: str) -> Mapping[str, Any]:
        """Makes a rejected snapshot live: if it passes now, or with `force` whatever was found out about it.

        Returns:
            The payload of ``release.overwrite``, or of ``release.published`` if it is the first.

        Raises:
            NoSuchRelease, Rejected, Moved, SpancatDaemonError, OSError: see `promotion.promote`.
        """
        with self._holding.alone:
            history = self._ready()
            swapped = promote(
                self.target,
                self.folder,
                history,
                name=name,
                force=force,
                reason=reason,
                tools=self._tools,
            )
            self._looking.forget()
            payload = self._swapped(swapped.record)
            self.keeping.retain(self._holding.history)
            return payload

    def corrupted(self, release: str, path: Path, faults: Sequence[str], *, live: bool, heal: bool) -> None:
        """Tells of a stored release whose bytes have changed; if it is live, another one may take its place.

        Args:
            release: its id.
            path: its directory.
            faults: what is wrong with it, at least one.
            live: whether it is live.
            heal: make the last good release live if this one is. It is not barred: as soon as its checkpoint
                is looked at again, and still has the same content, it is published anew.
        """
        self._chronicle.corrupted(release, path, faults, live=live)
        if not (live and heal):
            return
        try:
            self._go_back(
                None,
                leaving=release,
                trigger="recovery",
                reason=f"{release} is corrupted: {faults[0]}",
            )
        except Abandoned:
            return  # the next scrub finds it again
        except (OSError, SpancatDaemonError) as error:
            again = self.snapshot("recovery", force=True)  # its checkpoint may still be there
            if again.status != "published":
                self._chronicle.stays(release, "it is corrupted", f"{error}; {again.reason}")

    def _swapped(self, record: Record) -> Mapping[str, Any]:
        self._holding.remember_place()
        payload = self._chronicle.swapped(record)
        self._follow_up.begin(record, self.target.watch)
        return payload

    def _published(self, record: Record) -> None:
        self._swapped(record)
        self.keeping.retain(self._holding.history)

    @property
    def recorded_live(self) -> str | None:
        """The id of what the history says was made live last, whatever became of it."""
        return self._holding.history.live

    def live_id(self) -> str | None:
        """The id of the live release; None if there is none, or the folder can't be read."""
        try:
            live = self.folder.live()
        except (OSError, SpancatDaemonError):
            return None
        return live.id if live else None
