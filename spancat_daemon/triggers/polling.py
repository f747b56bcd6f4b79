"""Looking instead of being told: for file systems without events, and where the kernel's limits are reached.

A poll compares the stat of every file of a checkpoint with the last one. It reads no file.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from spancat_daemon.triggers.footprint import Look

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon.triggers.directories import Interest
    from spancat_daemon.triggers.footprint import Footprint, Route

logger = logging.getLogger(__name__)

MAXIMUM_FILES = 100_000
"""A signature looks at no more entries than this; changes beyond are left to the reconciling scan."""


class _Signature(Look):
    """A look that notes the stat of each file instead of watching."""

    def __init__(self, *, contents: bool, beside: frozenset[str]) -> None:
        # What is too much to be watched is polled: here another limit holds.
        super().__init__(_claim_nothing, contents=contents, beside=beside, at_most=MAXIMUM_FILES)
        self.digest = blake2b(digest_size=16)
        self._files = 0

    def _tree(self, fd: int) -> None:
        self.digest.update(b"\1")
        for name in sorted(self._names(fd)):
            self._files += 1
            if self._files > MAXIMUM_FILES:
                return
            if self._stat(fd, name):
                self._descend(fd, name)
        self.digest.update(b"\2")

    def _around(self, fd: int) -> None:
        for name in sorted(self._beside):
            self._stat(fd, name)

    def _stat(self, fd: int, name: str) -> bool:
        """Notes the stat of an entry, and says whether it is a directory."""
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            self.digest.update(f"{error.errno}\0".encode())
            return False
        times = (status.st_mtime_ns, status.st_ctime_ns)
        self.digest.update(os.fsencode(name))
        self.digest.update(f"\0{status.st_mode} {status.st_ino} {status.st_size} {times}\0".encode())
        return stat.S_ISDIR(status.st_mode)


def _claim_nothing(fd: int, interest: Interest) -> None:
    """What a poll watches."""


def signature(
    way: Route, *, contents: bool = True, beside: frozenset[str] = frozenset()
) -> tuple[bytes, Footprint]:
    """A digest that differs as soon as anything differs at the end of the way, and what was found there.

    Without `contents` it differs as soon as other checkpoints are found; with `beside` also as soon as one of
    these files around the checkpoint differs.
    """
    look = _Signature(contents=contents, beside=beside)
    found = look.take(way)
    look.digest.update(repr((found.root, sorted(found.checkpoints))).encode())
    return look.digest.digest(), found


@dataclass(slots=True)
class _Polled:
    way: Route
    period_s: float
    contents: bool
    beside: frozenset[str]
    due: float
    last: bytes | None = None


class Poller:
    """One thread for everything that is polled; there is none while nothing is.

    It is a thread of its own because a stat on a dead network mount can hang: then polling stops, but neither
    events nor the daemon do.

    Args:
        on_found: `(key, found, changed)` after each poll, from the poller's thread.
    """

    def __init__(self, on_found: Callable[[str, Footprint, bool], None]) -> None:
        self._on_found = on_found
        self._polled: dict[str, _Polled] = {}
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def set(
        self,
        key: str,
        way: Route,
        period_s: float,
        *,
        contents: bool = True,
        beside: frozenset[str] = frozenset(),
    ) -> None:
        """Polls `way` for `key` from now on. The first, at once, counts as a change."""
        wanted = (way, period_s, contents, beside)
        with self._condition:
            old = self._polled.get(key)
            if old is not None and (old.way, old.period_s, old.contents, old.beside) == wanted:
                return
            self._polled[key] = _Polled(*wanted, due=time.monotonic())
            self._ensure_thread()
            self._condition.notify()

    def remove(self, key: str) -> None:
        """Polls for `key` no more."""
        with self._condition:
            if self._polled.pop(key, None) is not None:
                self._condition.notify()

    def check(self) -> None:
        """Starts the thread anew should it have died."""
        with self._condition:
            if self._polled and not self._stopped:
                self._ensure_thread()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Ends the thread; one that hangs in a system call is left behind after `timeout_s`."""
        with self._condition:
            self._stopped = True
            self._polled.clear()
            self._condition.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="file-poller", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._polled:
                    self._thread = None
                    return
                key, polled = min(self._polled.items(), key=lambda item: item[1].due)
                wait_s = polled.due - time.monotonic()
                if wait_s > 0:
                    self._condition.wait(min(wait_s, threading.TIMEOUT_MAX))
                    continue
                polled.due = time.monotonic() + polled.period_s
            try:
                self._poll(key, polled)
            except Exception:  # the next round tries again
                logger.exception("polling failed")

    def _poll(self, key: str, polled: _Polled) -> None:
        new, found = signature(polled.way, contents=polled.contents, beside=polled.beside)
        old, polled.last = polled.last, new
        with self._condition:
            if self._polled.get(key) is not polled:
                return
        self._on_found(key, found, old != new)
        # Counted from the end of the poll: a slow tree takes at most half of one thread.
        polled.due = max(polled.due, time.monotonic() + polled.period_s / 2)
