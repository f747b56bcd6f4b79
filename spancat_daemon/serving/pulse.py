"""When to look at a deployment folder: at once after a swap, and every second whatever the kernel says."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time
from typing import TYPE_CHECKING, Final, cast

from watchdog.observers.inotify_c import InotifyConstants as Bits
from watchdog.observers.inotify_c import inotify_add_watch, inotify_init, inotify_rm_watch

from spancat_daemon.release.survey import CURRENT
from spancat_daemon.serving.forks import locks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from watchdog.observers.inotify_c import WatchDescriptor

TICK_S: Final = 1.0
"""How long a swap goes unnoticed where the kernel tells nothing: NFS, no watch left, a folder that moved."""

_GONE: Final = Bits.IN_DELETE_SELF | Bits.IN_MOVE_SELF | Bits.IN_UNMOUNT | Bits.IN_IGNORED
_ENTRIES: Final = Bits.IN_CREATE | Bits.IN_DELETE | Bits.IN_MOVED_FROM | Bits.IN_MOVED_TO
_MASK: Final = _ENTRIES | Bits.IN_DELETE_SELF | Bits.IN_MOVE_SELF | Bits.IN_ONLYDIR
_HEAD: Final = struct.Struct("iIII")
_BUFFER_BYTES: Final = 64 << 10


class Pulse:
    """Tells one thread when to look at a folder. Reads only, and does with less than a watch where it must.

    `wait` belongs to that thread, `wake` and `stop` may be called from any.

    Args:
        folder: need not be there, and may go, move and come back.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inotify = -1
        self._watched: tuple[int, tuple[int, int]] | None = None
        self._stopped = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stopped

    def wake(self) -> None:
        """End the wait, or the next one."""
        with locks.state, contextlib.suppress(BlockingIOError):  # rung 2⁶⁴ times
            if self._bell >= 0:  # else its number may be another file's by now
                os.eventfd_write(self._bell, 1)

    def stop(self) -> None:
        """End the wait for good."""
        self._stopped = True
        self.wake()

    def close(self) -> None:
        """Give the descriptors back; in a forked child those of the parent, which then keeps its own."""
        self._stopped = True
        with locks.state:
            for fd in (self._bell, self._inotify):
                if fd >= 0:
                    os.close(fd)
            self._bell = self._inotify = -1

    def wait(self) -> None:
        """Return when something may have changed; after `TICK_S` at the latest."""
        tick = time.monotonic() + TICK_S
        # A new watch: what happened before it stood has to be looked at.
        changed = not self._stopped and self._watch()
        while not (changed or self._stopped):
            left = tick - time.monotonic()
            if left <= 0:
                return
            changed = self._wait(left)

    def _wait(self, timeout_s: float) -> bool:
        poller = select.poll()
        for fd in (self._bell, self._inotify):
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(timeout_s * 1000)}
        rung = self._bell in ready
        if rung:
            with contextlib.suppress(OSError):
                os.eventfd_read(self._bell)
        return (self._inotify in ready and self._told()) or rung

    def _told(self) -> bool:
        """Whether what the kernel tells is of interest."""
        name, changed = CURRENT.encode(), False
        with contextlib.suppress(BlockingIOError):
            for wd, mask, entry in _events(os.read(self._inotify, _BUFFER_BYTES)):
                if mask & Bits.IN_Q_OVERFLOW:
                    changed = True
                elif self._watched is not None and wd == self._watched[0]:
                    if mask & _GONE:
                        self._watched = None
                    changed = changed or bool(mask & _GONE) or entry == name
        return changed

    def _watch(self) -> bool:
        """Watch what the path leads to now; says whether that is another directory than before.

        Where that can't be had, the tick has to do; the next wait tries again.
        """
        try:
            fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            status = os.fstat(fd)
            identity = (status.st_dev, status.st_ino)
            if self._watched is not None:
                if self._watched[1] == identity:
                    return False
                inotify_rm_watch(self._inotify, cast("WatchDescriptor", self._watched[0]))
                self._watched = None
            if self._inotify < 0 and not self._open():
                return False
            wd = inotify_add_watch(self._inotify, b"/proc/self/fd/%d" % fd, _MASK)
            if wd < 0:
                return False
            self._watched = (wd, identity)
            return True
        finally:
            os.close(fd)

    def _open(self) -> bool:
        fd = inotify_init()
        if fd < 0:
            return False
        os.set_inheritable(fd, False)  # noqa: FBT003  # os's own signature
        os.set_blocking(fd, False)  # as above
        self._inotify = fd
        return True


def _events(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at < len(raw):
        wd, mask, _, length = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        yield wd, mask, raw[at : at + length].rstrip(b"\0")
        at += length
