"""One deployment folder in this process's hands: locked, recovered, its history open for writing."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from spancat_daemon.errors import Moved, SpancatDaemonError
from spancat_daemon.release.history import History
from spancat_daemon.release.recovery import recover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from spancat_daemon.deploying.chronicle import Chronicle
    from spancat_daemon.deploying.whereabouts import Whereabouts
    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.lock import Lock
    from spancat_daemon.release.swap import Kind


class Holding:
    """Who works on the folder holds `alone`; that may be done again by the thread that holds it.

    Attributes:
        alone: the mutex of all work on the folder.
    """

    def __init__(
        self,
        folder: DeploymentFolder,
        chronicle: Chronicle,
        *,
        holder: str,
        control: Path | None = None,
        kind: Callable[[], Kind],
        now: Callable[[], datetime],
        durability: Durability,
        whereabouts: Whereabouts | None = None,
    ) -> None:
        """Holds nothing yet.

        Args:
            folder: which.
            chronicle: told what recovery finds.
            holder: who holds it, for people.
            control: the socket that the holder can be asked at.
            kind: how ``current`` is made where recovery finds it missing.
            now: the wall clock in UTC.
            durability: how bytes are made to stay.
            whereabouts: what is remembered of where the folder lies, if anything.
        """
        self.alone = threading.RLock()
        self._folder = folder
        self._chronicle = chronicle
        self._holder = holder
        self._control = control
        self._kind = kind
        self._now = now
        self._durability = durability
        self._whereabouts = whereabouts
        self._at_rest = threading.Condition(self.alone)
        self._in_staging: set[str] = set()
        self._held = ExitStack()
        self._lock: Lock | None = None
        self._history: History | None = None

    def take(self) -> bool:
        """Takes the folder, if it is not held already; returns whether it was taken now.

        A folder that was deleted, moved or replaced is held no more, whatever lock is left of it: then what
        is there now is taken. Parts of it that are missing are made again.

        Raises:
            FolderBusy: another process holds it.
            Elsewhere: it was on another disk, which is not mounted; nothing was made in its place.
            SpancatDaemonError: it is not one of ours, or its history is broken.
            OSError: it can't be created, read or written.
        """
        with self.alone:
            lost = self._history is not None and not self._is_held()
            if lost:
                self._held.close()
            if self._history is not None:
                self._folder.prepare(self._durability)
                return False
            if self._whereabouts is not None:
                self._whereabouts.check(self._folder)
            with ExitStack() as held:
                self._folder.prepare(self._durability)
                self._lock = held.enter_context(self._folder.lock(self._holder, control=self._control))
                self._history = held.enter_context(
                    History.open(self._folder.history_path, durability=self._durability, clock=self._now)
                )
                held.callback(self._forget_history)
                self._folder.memory.forget()  # others may have held it meanwhile: recovery looks at it all
                self.recover()
                self._held = held.pop_all()
            if lost:
                self._chronicle.held_anew(self._history.live)
            return True

    def reachable_at(self, control: Path) -> None:
        """Tells those who find the folder held where its holder can be asked from now on."""
        self._control = control
        lock = self._lock
        if lock is not None and lock.is_held():
            lock.reachable_at(control)

    def let_go(self) -> None:
        """Lets the folder go, once what was let out of `alone` has come back."""
        with self._at_rest:
            self._at_rest.wait_for(lambda: not self._in_staging)
            self._held.close()

    def comes_to_rest(self, timeout_s: float) -> bool:
        """Whether nobody works on the folder any more, after so long at most."""
        if not self.alone.acquire(timeout=timeout_s):
            return False
        try:
            return self._at_rest.wait_for(lambda: not self._in_staging, timeout_s)
        finally:
            self.alone.release()

    def recover(self) -> None:
        """Repairs what a crash left in the folder and logs each swap that the log has not seen."""
        with self.alone:
            history = self.history
            self._chronicle.missed(history)  # before recovery makes further commits
            recovered = recover(
                self._folder,
                history=history,
                durability=self._durability,
                kind=self._kind(),
                spare=self._in_staging,
            )
            self._chronicle.recovered(recovered, history)
            self.remember_place()

    def remember_place(self) -> None:
        """Remembers where the folder lies, and how far its history goes."""
        if self._whereabouts is not None:
            self._whereabouts.remember(self.history)

    def ready(self) -> History:
        """The history of a folder that is held, and in which nothing is left to be concluded.

        Raises:
            FolderBusy, SpancatDaemonError, OSError: as `take`.
        """
        self.take()
        self.recover()
        return self.history

    @property
    def history(self) -> History:
        """The open history.

        Raises:
            SpancatDaemonError: the folder is not held.
        """
        if self._history is None:
            raise SpancatDaemonError("the deployment folder was let go", where=str(self._folder.path))
        return self._history

    @property
    def lets_others_in(self) -> bool:
        """Whether somebody who holds the folder lets others work on it at this moment."""
        return bool(self._in_staging)

    @contextmanager
    def let_others_in(self, name: str, wake: Callable[[], None]) -> Iterator[None]:
        """Leaves `alone` for a while; others leave what is called `name` in staging alone.

        Args:
            name: of a directory in staging.
            wake: called once others can come in.

        Raises:
            Moved: on its end, if the folder was let go meanwhile, or is not the same any more.
        """
        history = self._history
        self._in_staging.add(name)
        self.alone.release()
        try:
            wake()
            yield
        finally:
            self.alone.acquire()
            self._in_staging.discard(name)
            self._at_rest.notify_all()
        if self._history is not history or not self._is_held():
            raise Moved("the folder was let go while a snapshot was verified", where=str(self._folder.path))

    def _is_held(self) -> bool:
        return self._lock is not None and self._lock.is_held()

    def _forget_history(self) -> None:
        self._history = None
