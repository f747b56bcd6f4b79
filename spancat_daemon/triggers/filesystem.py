"""Tells which checkpoints may have changed on disk."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from spancat_daemon.triggers.directories import Directories, Interest
from spancat_daemon.triggers.footprint import Fault, Footprint, Look, route
from spancat_daemon.triggers.mounts import Mounts
from spancat_daemon.triggers.polling import Poller
from spancat_daemon.triggers.watched import FALLBACK_POLL_S, Outbox, State, Watched, WatchEvent, where

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

__all__ = ["FilesystemTrigger", "WatchEvent", "Watched"]

logger = logging.getLogger(__name__)

LONGEST_RESTART_S = 300.0
COMPARING_SHARE = 0.0005
"""As much of a core goes at most into comparing what is watched with what is there, however much that is."""
COMPARED_AT_EACH_CALL_S = 0.001
"""What takes no more than that is compared whenever `check` is called."""
LONGEST_UNCOMPARED_S = 300.0
CANARY_PATIENCE_S = 10.0
"""A reader that has not brought a touched canary back by then hangs, and is replaced."""


class FilesystemTrigger:
    """Calls `on_dirty(key)` as soon as something may have changed at what the key watches.

    Guarantees, while it runs and `check` is called every few seconds:

    * After every change of a watched checkpoint `on_dirty` is called, in milliseconds where the kernel
      gives events, else within the poll period. It is called too often rather than too seldom.
    * That holds through removal, new creation, moves and re-targeted links of the checkpoint or of any
      directory on the way to it, and for paths that do not exist yet.
    * Where events are lost or not to be had (queue overflow, limits of watches or instances, unreadable
      directories, a dead reader) this is said by an event, the keys concerned are called dirty, and the trees
      are polled until it is better.

    One inotify instance and two threads, however many keys; idle, neither wakes. A third thread polls if
    anything is to be polled. `check`, `set_watched`, `start` and `stop` may be called from any thread.

    Args:
        on_dirty: called from several threads, must be quick and must not call back.
        on_event: what is to be logged, likewise.
        canary_path: a file of our own; see `touch_canary`.
        monotonic: the clock, in seconds.
    """

    def __init__(
        self,
        *,
        on_dirty: Callable[[str], None],
        on_event: Callable[[WatchEvent], None],
        canary_path: Path,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell_dirty = on_dirty
        self._tell_event = on_event
        self._canary_path = canary_path
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._states: dict[str, State] = {}
        self._directories: Directories | None = None
        self._poller: Poller | None = None
        self._keeper: threading.Thread | None = None
        self._running = False
        self._wake = threading.Event()
        self._pending: dict[str, None] = {}
        self._overflowed = False
        self._mounts: Mounts | None = None
        self._compare_at = 0.0
        self._missing: frozenset[int] = frozenset()
        self._missing_since = 0.0
        self._reader_fault: Fault | None = None
        self._reader_retry_at = 0.0
        self._reader_delay_s = 0.0
        self._canary_touched = self._canary_read = self._canary_back = monotonic()
        self._canary_due = False
        self._canary_error = ""

    # -- for the service --

    def start(self) -> None:
        """Starts the threads and watches what `set_watched` named before. Does nothing if it runs."""
        out = Outbox()
        with self._lock:
            if self._running:
                return
            self._running = True
            self._canary_touched = self._canary_read = self._canary_back = self._monotonic()
            self._poller = Poller(self._on_polled)
            self._mounts = Mounts()
            self._open_reader(out)
            self._start_keeper()
            for key in self._states:
                self._look(key, out)
        self._deliver(out)

    def stop(self) -> None:
        """Ends all threads and gives back all descriptors; tells nothing after it returned."""
        with self._lock:
            if not self._running:
                return
            self._running = False
            directories, self._directories = self._directories, None
            poller, self._poller = self._poller, None
            keeper, self._keeper = self._keeper, None
            mounts, self._mounts = self._mounts, None
            for key, state in self._states.items():
                self._states[key] = State(state.watched, state.way)
        self._wake.set()
        if mounts is not None:
            mounts.close()
        if poller is not None:
            poller.stop()
        if directories is not None:
            directories.close()
        if keeper is not None:
            keeper.join(2.0)

    def set_watched(self, watched: Sequence[Watched]) -> None:
        """Watches exactly these from now on: adds first, then removes; what stays the same is untouched.

        When it returns, every later change is reported; what came before is for the caller's own scan.

        Raises:
            ValueError: two of them have the same key, or a path is not absolute.
        """
        wanted = {item.key: item for item in watched}
        if len(wanted) != len(watched):
            raise ValueError("two watched paths have the same key")
        if relative := [str(item.path) for item in watched if not item.path.is_absolute()]:
            raise ValueError(f"not absolute: {', '.join(relative)}")
        out = Outbox()
        with self._lock:
            for key, item in wanted.items():
                state = self._states.get(key)
                if state is not None and state.watched == item:
                    continue
                self._states[key] = State(item, route(item.path, item.pattern))
                if self._running:
                    self._look(key, out)
            for key in self._states.keys() - wanted.keys():
                del self._states[key]
                if self._directories is not None:
                    self._directories.release(key)
                if self._poller is not None:
                    self._poller.remove(key)
        self._deliver(out)

    def check(self) -> None:
        """Finds what no event tells; to be called every few seconds.

        Looks whether the reader lives, restarts it, and retries failed watches, with growing delays. As soon
        as a mount came or went, and else as often as `COMPARING_SHARE` allows (with a few hundred keys at
        each call), compares where each path leads with what is watched, and the kernel's watches with ours.
        """
        out = Outbox()
        with self._lock:
            if not self._running:
                return
            now = self._monotonic()
            if self._keeper is None or not self._keeper.is_alive():
                self._start_keeper()
            if self._poller is not None:
                self._poller.check()
            began_s = time.thread_time()
            mounted = self._mounts is not None and self._mounts.changed()
            compares = mounted or now >= self._compare_at or bool(self._missing)
            self._check_reader(now, out, compares=compares)
            for key, state in self._states.items():
                if self._is_due(state, now, compares=compares):
                    self._look(key, out)
            if compares:
                spent_s = time.thread_time() - began_s
                if spent_s > COMPARED_AT_EACH_CALL_S:
                    self._compare_at = now + min(spent_s / COMPARING_SHARE, LONGEST_UNCOMPARED_S)
        self._deliver(out)

    def touch_canary(self) -> None:
        """Touches the canary file, which is to come back as an event through the same reader and keeper.

        Where no watch is left for it, and so much is polled, only the keeper has to prove itself. A file that
        can't be touched does not come back: the daemon's own state directory is unusable.
        """
        with self._lock:
            if not self._running:
                return
            error = self._touch(self._directories)
            if error is None or error.errno in {errno.ENOSPC, errno.ENOMEM}:
                if self._directories is None or error is not None:
                    self._canary_due = True
                    self._wake.set()
            elif str(error) != self._canary_error:
                logger.warning("the canary file %s can't be touched: %s", self._canary_path, error)
            self._canary_error = str(error or "")

    def canary_age_s(self) -> float:
        """Seconds since the canary last came back, or since the start."""
        return self._monotonic() - self._canary_back

    # -- reader thread: as little as possible --

    def _on_change(self, key: str, moved: bool) -> None:
        self._dirty(key)
        if moved:
            self._pending[key] = None
            self._wake.set()

    def _on_overflow(self) -> None:
        self._overflowed = True
        self._wake.set()

    def _on_canary(self) -> None:
        self._canary_read = self._monotonic()
        self._canary_due = True
        self._wake.set()

    # -- keeper thread: follows directories that come, go and move --

    def _start_keeper(self) -> None:
        self._keeper = threading.Thread(target=self._keep, name="file-watches", daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        me = threading.current_thread()
        while self._running and self._keeper is me:
            self._wake.wait()
            self._wake.clear()
            try:
                self._keep_once()
            except Exception:  # the next event or check() tries again
                logger.exception("watches could not be brought up to date")

    def _keep_once(self) -> None:
        if self._canary_due:
            self._canary_due = False
            self._canary_back = self._monotonic()
        out = Outbox()
        keys: Iterable[str] = ()
        with self._lock:
            overflowed, self._overflowed = self._overflowed, False
            if overflowed and self._running:
                out.add("watch.overflowed", None, rules=len(self._states))
                keys = [key for key, state in self._states.items() if not state.polls]
                out.dirty.update(dict.fromkeys(keys))
        # Key by key, so that nobody waits for all of them; dirty only after the watches are in place.
        if not overflowed:
            keys = self._take_pending()
        for key in keys:
            with self._lock:
                if self._running and key in self._states:
                    self._look(key, out)
        self._deliver(out)

    def _take_pending(self) -> list[str]:
        keys: list[str] = []
        while self._pending:  # the reader adds to it meanwhile
            keys.append(self._pending.popitem()[0])
        return keys

    # -- poller thread --

    def _on_polled(self, key: str, found: Footprint, changed: bool) -> None:
        out = Outbox()
        with self._lock:
            state = self._states.get(key)
            if not self._running or state is None:
                return
            if state.polls:
                state.note(found, out)
            if changed:
                out.dirty[key] = None
        self._deliver(out)

    # -- with the lock held --

    def _touch(self, directories: Directories | None) -> OSError | None:
        if directories is None:
            return None
        try:
            fd = os.open(self._canary_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                directories.watch_canary(fd)
                self._canary_touched = self._monotonic()
                os.utime(fd)
            finally:
                os.close(fd)
        except OSError as error:
            return error
        return None

    def _is_due(self, state: State, now: float, *, compares: bool) -> bool:
        """Whether watches that failed are to be tried again, or lead elsewhere than they did."""
        if state.polls or self._directories is None:
            return False
        if state.fault is not None:
            return now >= state.retry_at
        known = state.checkpoints if state.watched.pattern is None else None
        return compares and where(state.watched) != (state.root, known)

    def _look(self, key: str, out: Outbox) -> None:
        """Brings the watches of one key up to date with the disk."""
        state, directories = self._states[key], self._directories
        if state.polls or directories is None:
            self._look_by_polling(state, out)
            return
        found, changed = self._claim(state, directories)
        if not directories.alive:  # its errors say nothing of this key; check() brings a new one
            out.dirty[key] = None
            return
        fault = found.faults[0] if found.faults else None
        if fault is None and not found.checkpoints and state.watched.pattern is None:
            # A trainer takes it away for moments: that nothing hurts then says nothing.
            fault = state.fault
        self._poll(state, FALLBACK_POLL_S if fault is not None else 0)
        if not state.started:
            state.root = found.root
            state.checkpoints = frozenset(found.checkpoints)
            state.directories = found.directories
            state.say_started(out, by="events" if fault is None else "polling")
        elif changed or state.checkpoints != frozenset(found.checkpoints):
            out.dirty[key] = None
        state.note(found, out)
        state.note_fault(fault, out, now=self._monotonic())

    def _look_by_polling(self, state: State, out: Outbox) -> None:
        self._poll(state, state.watched.poll_s or FALLBACK_POLL_S)
        if not state.polls:
            state.note_fault(self._reader_fault, out, now=self._monotonic())
        elif self._directories is not None:
            self._directories.release(state.watched.key)  # of what had its name before
        if not state.started:
            state.root, checkpoints = where(state.watched)
            state.checkpoints = checkpoints or frozenset()
            state.say_started(out, by="polling")

    def _poll(self, state: State, period_s: float) -> None:
        if self._poller is not None and period_s > 0:
            watched = state.watched
            self._poller.set(
                watched.key, state.way, period_s, contents=watched.contents, beside=watched.beside
            )
        elif self._poller is not None:
            self._poller.remove(state.watched.key)

    def _claim(self, state: State, directories: Directories) -> tuple[Footprint, bool]:
        key, watched = state.watched.key, state.watched
        changed = False
        interests: dict[int, Interest] = {}
        found = Footprint()

        def claim(fd: int, interest: Interest) -> None:
            nonlocal changed
            wd, new = directories.claim(key, fd, interest)
            interests[wd] = interests[wd] | interest if wd in interests else interest
            changed = changed or new

        for _attempt in range(5):
            interests.clear()
            found = Look(claim, contents=watched.contents, beside=watched.beside).take(state.way)
            if not found.checkpoints and not found.faults:
                found = Look(claim, contents=watched.contents, beside=watched.beside, missing=True).take(
                    state.way
                )
            # Whatever was replaced before all watches stood shows here; whatever comes later is an event.
            if where(watched) == (
                found.root,
                frozenset(found.checkpoints) if watched.pattern is None else None,
            ):
                break
        if found.faults:  # the look can have ended on its way
            found.root, present = where(watched)
            found.checkpoints = found.checkpoints if present is None else list(present)
        surplus = directories.keep_only(key, interests)
        return found, changed or surplus

    def _open_reader(self, out: Outbox) -> None:
        try:
            self._directories = Directories(
                on_change=self._on_change, on_overflow=self._on_overflow, on_canary=self._on_canary
            )
        except OSError as error:
            instances = error.errno == errno.EMFILE
            fault = Fault(
                "",
                "the limit of inotify instances is reached" if instances else f"no inotify: {error}",
                "raise fs.inotify.max_user_instances (sysctl) or the limit of open files"
                if instances
                else "",
            )
            if self._reader_fault is None:
                out.add("watch.degraded", None, path="", reason=fault.reason, hint=fault.hint)
            self._reader_fault = fault
            self._delay_reader()
        else:
            self._reader_fault = None
            self._touch(self._directories)  # before all others, so that at the limit it has its watch

    def _delay_reader(self) -> None:
        self._reader_delay_s = min(max(self._reader_delay_s * 2, 1.0), LONGEST_RESTART_S)
        self._reader_retry_at = self._monotonic() + self._reader_delay_s

    def _check_reader(self, now: float, out: Outbox, *, compares: bool) -> None:
        directories = self._directories
        reason = self._complaint(directories, now, compares=compares) if directories is not None else ""
        if directories is not None and not reason:
            if self._canary_back > self._reader_retry_at:
                self._reader_delay_s = 0.0  # it has proven itself since the last restart
            return
        if now < self._reader_retry_at:
            return
        if directories is not None:
            out.add("watch.degraded", None, path="", reason=reason, hint="it is started anew")
            self._directories = None
            directories.close(timeout_s=1.0)
            self._delay_reader()
        self._canary_touched = self._canary_read = now
        self._missing = frozenset()
        self._open_reader(out)
        if self._directories is not None:
            out.add("watch.restored", None, path="", reason="a new reader of file events")
        for key, state in self._states.items():
            self._look(key, out)
            if not state.polls:
                out.dirty[key] = None

    def _complaint(self, directories: Directories, now: float, *, compares: bool) -> str:
        if not directories.alive:
            return "the reader of file events died"
        if self._canary_read < self._canary_touched < now - CANARY_PATIENCE_S:
            return "the reader of file events hangs"
        if compares and self._lost_watches(directories, now):
            return "the kernel holds fewer watches than it was given"
        return ""

    def _lost_watches(self, directories: Directories, now: float) -> bool:
        """Whether the same ones are missing after all events that were on their way to us have come.

        When thousands of directories go at once, the news of their end takes its time.
        """
        try:
            missing = directories.missing()
        except OSError:
            return False
        still = missing & self._missing
        if not still:
            self._missing, self._missing_since = missing, now
            return False
        self._missing = still
        if directories.has_canary:
            return self._missing_since < self._canary_touched <= self._canary_read
        return now - self._missing_since > CANARY_PATIENCE_S

    # -- without the lock --

    def _dirty(self, key: str) -> None:
        if not self._running:
            return
        try:
            self._tell_dirty(key)
        except Exception:  # must not end the thread it was called from
            logger.exception("on_dirty failed")

    def _deliver(self, out: Outbox) -> None:
        for event in out.events:
            try:
                self._tell_event(event)
            except Exception:  # as in _dirty
                logger.exception("on_event failed")
        for key in out.dirty:
            self._dirty(key)
