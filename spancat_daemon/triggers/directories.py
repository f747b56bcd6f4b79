"""Which directories the kernel reports on, and for whom.

Built on watchdog's `InotifyFD`, not on its `Observer`, because of how watchdog 7.1.0 works:

* `Observer.schedule` takes a thread per call; `InotifyFD` is one thread and one inotify instance in all
  (of 128 that a user has), and both only wake when something happens;
* its recursive watches swallow the error of each subdirectory, so a reached watch limit goes unnoticed; here
  each directory is one call that says what went wrong;
* it watches by path; here a directory is watched through an open descriptor, so it is certain which one.

Nothing in this module decides what is to be watched: that is `footprint.py`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Callable  # noqa: TC003  # kept at run time: dataclass fields
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

from watchdog.observers.inotify_c import InotifyConstants as Bits
from watchdog.observers.inotify_c import InotifyFD

if TYPE_CHECKING:
    import threading

    from watchdog.observers.inotify_c import CallbackId, InotifyEvent, Mask, WatchDescriptor

logger = logging.getLogger(__name__)

SELF_BITS: int = Bits.IN_DELETE_SELF | Bits.IN_MOVE_SELF
ENTRY_BITS: int = Bits.IN_CREATE | Bits.IN_DELETE | Bits.IN_MOVED_FROM | Bits.IN_MOVED_TO
# ATTRIB too: copytree sets the times of model-best's files after their last byte, and settling reads them.
CONTENT_BITS: int = ENTRY_BITS | Bits.IN_MODIFY | Bits.IN_CLOSE_WRITE | Bits.IN_ATTRIB
GONE_BITS: int = SELF_BITS | Bits.IN_UNMOUNT | Bits.IN_IGNORED

Identity = tuple[int, int]


def _ended(wd: int) -> Identity:
    """The identity of a directory that is there no more: none that another one can have."""
    return (-1, -wd)


@dataclass(frozen=True, slots=True)
class Interest:
    """What one key wants to know of one directory. Its own end or move is always of interest.

    Attributes:
        names: entries whose coming and going matters.
        patterns: the same, as wildcards.
        contents: everything in it matters (it belongs to a checkpoint).
    """

    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    contents: bool = False

    def __or__(self, other: Interest) -> Interest:
        return Interest(
            self.names | other.names, self.patterns | other.patterns, self.contents or other.contents
        )

    @property
    def mask(self) -> int:
        """The inotify bits that this interest needs."""
        if self.contents:
            return SELF_BITS | CONTENT_BITS
        return SELF_BITS | ENTRY_BITS if self.names or self.patterns else SELF_BITS

    def matches(self, name: str) -> bool:
        """Whether the coming or going of the entry `name` matters."""
        return name in self.names or any(fnmatchcase(name, pattern) for pattern in self.patterns)


@dataclass(slots=True)
class _Directory:
    """A watched directory.

    The reader takes `interests` without a lock, in one step; thousands of keys can share a directory above
    them, so that to copy it for each would take the square of their number.
    """

    wd: int
    identity: Identity
    mask: int
    callback: int
    interests: dict[str, Interest] = field(default_factory=dict)


class Directories:
    """One inotify instance and the directories it reports on.

    Everything but the three callbacks is called with the owner's lock held. The callbacks come from the
    reader thread and must be quick; what they raise is logged and goes no further: it would end the reader.

    Args:
        on_change: `(key, moved)`: something that `key` is interested in happened; `moved` says that
            directories came or went, so that its footprint has to be taken anew.
        on_overflow: the kernel's queue was full and events were lost.
        on_canary: the canary file was touched.

    Raises:
        OSError: EMFILE when no inotify instance is left.
    """

    def __init__(
        self,
        *,
        on_change: Callable[[str, bool], None],
        on_overflow: Callable[[], None],
        on_canary: Callable[[], None],
    ) -> None:
        self._on_change = on_change
        self._on_overflow = on_overflow
        self._on_canary = on_canary
        self._by_wd: dict[int, _Directory] = {}
        self._by_identity: dict[Identity, int] = {}
        self._by_key: dict[str, list[int]] = {}  # a set of ten takes 700 bytes, of each key
        self._ids = itertools.count(1)
        self._canary: tuple[int, int, Identity] | None = None
        self._closed = False
        self._reader = InotifyFD()
        # watchdog opens it without CLOEXEC; no child of ours has any business with it.
        os.set_inheritable(self.descriptor, False)  # noqa: FBT003  # os's own signature
        self._reader.name = "file-events"
        self._reader.start()

    @property
    def descriptor(self) -> int:
        """The inotify instance's file descriptor."""
        return self._reader._inotify_fd  # noqa: SLF001  # no public name for it

    @property
    def alive(self) -> bool:
        """Whether the reader thread runs. One that hangs is alive too: only the canary finds that."""
        return self._reader.is_alive() and self._reader.should_keep_running()

    @property
    def thread(self) -> threading.Thread:
        """The reader thread."""
        return self._reader

    @property
    def has_canary(self) -> bool:
        """Whether the canary file is watched."""
        return self._canary is not None

    def count(self) -> int:
        """How many watches this instance ought to have."""
        return len(self._by_wd) + (self._canary is not None)

    def kernel_count(self) -> int:
        """How many watches the kernel says this instance has."""
        return len(self._of_the_kernel())

    def missing(self) -> frozenset[int]:
        """Watches that the kernel does not have, though no event has said that they ended, yet or at all."""
        wanted = [wd for wd, directory in list(self._by_wd.items()) if directory.identity != _ended(wd)]
        held = self._of_the_kernel()
        return frozenset(wd for wd in wanted if wd not in held)

    def _of_the_kernel(self) -> set[int]:
        """The watches in `/proc/self/fdinfo`: ``inotify wd:1 ino:…``, hexadecimal; see proc(5)."""
        with open(f"/proc/self/fdinfo/{self.descriptor}", "rb") as info:  # noqa: PTH123  # not a path of ours
            return {int(line.split()[1][3:], 16) for line in info if line.startswith(b"inotify ")}

    def watched_by(self, key: str) -> frozenset[int]:
        """The watch descriptors held for `key`."""
        return frozenset(self._by_key.get(key, ()))

    def claim(self, key: str, fd: int, interest: Interest) -> tuple[int, bool]:
        """Watches the directory open as `fd` for `key`, adding to what the key wanted of it before.

        When this returns, every change from now on is reported.

        Returns:
            The watch descriptor, and whether anything was new.

        Raises:
            OSError: ENOSPC at the limit of watches, EACCES if the directory is not readable.
        """
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        entered = -1
        while True:
            directory = self._by_wd.get(self._by_identity.get(identity, -1))
            if directory is None or interest.mask & ~directory.mask:
                directory = self._watch(fd, identity, interest.mask | (directory.mask if directory else 0))
            before = directory.interests.get(key)
            if before is None:
                entered = directory.wd
            wanted = interest if before is None else before | interest
            if wanted != before:
                directory.interests[key] = wanted
            # The reader takes a directory that ended out of _by_identity before it reads `interests`; so
            # either it saw this interest, or this sees that another directory has the inode number now.
            if self._by_identity.get(identity) == directory.wd:
                break
        new = entered == directory.wd
        if new:
            self._by_key.setdefault(key, []).append(directory.wd)
        return directory.wd, new

    def keep_only(self, key: str, interests: dict[int, Interest]) -> bool:
        """Ends what `key` held beyond `interests` (by watch descriptor); says whether anything went."""
        held = self._by_key.get(key, [])
        surplus = [wd for wd in held if wd not in interests]
        if surplus:
            self._by_key[key] = [wd for wd in held if wd in interests]
        for wd in surplus:
            self._release(key, wd)
        for wd, interest in interests.items():
            directory = self._by_wd.get(wd)
            if directory is not None and directory.interests.get(key, interest) != interest:
                directory.interests[key] = interest
        return bool(surplus)

    def release(self, key: str) -> None:
        """Ends everything held for `key`."""
        self.keep_only(key, {})
        self._by_key.pop(key, None)

    def watch_canary(self, fd: int) -> None:
        """Reports touches of the file open as `fd`, and of no other.

        Raises:
            OSError: as `claim`.
        """
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        if self._canary is not None and self._canary[2] == identity:
            return
        wd, callback = self._add(fd, Bits.IN_ATTRIB)
        old, self._canary = self._canary, (wd, callback, identity)
        if old is not None and old[0] != wd:
            self._remove(old[0], old[1])

    def close(self, timeout_s: float = 2.0) -> None:
        """Ends the reader and every watch. A reader that hangs is left behind after `timeout_s`."""
        self._closed = True
        was_alive = self._reader.is_alive()
        with contextlib.suppress(OSError):
            self._reader.stop()
        if was_alive:
            self._reader.join(timeout_s)
        elif self._reader._is_reading:  # noqa: SLF001  # it died in read(), where nobody closes its descriptors
            with contextlib.suppress(OSError):
                self._reader._close_resources()  # noqa: SLF001  # as above
        self._by_wd.clear()
        self._by_identity.clear()
        self._by_key.clear()
        self._canary = None

    # -- called by watchdog in the reader thread (its WatchCallback protocol) --

    def on_event(self, event: InotifyEvent) -> None:
        """One event of the kernel."""
        if self._closed:
            return
        try:
            self._dispatch(event.wd, event.mask, event.name)
        except Exception:  # what leaves this method ends the reader thread silently
            logger.exception("an event could not be handled")

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """The kernel ended a watch: its directory is gone or its file system unmounted."""
        if self._closed:
            return
        try:
            self._dispatch(wd, Bits.IN_IGNORED, b"")
        except Exception:  # as in on_event
            logger.exception("the end of a watch could not be handled")

    def on_queue_overflow(self) -> None:
        """The kernel threw events away."""
        if self._closed:
            return
        try:
            self._on_overflow()
        except Exception:  # as in on_event
            logger.exception("an overflow could not be handled")

    def _dispatch(self, wd: int, mask: int, raw_name: bytes) -> None:
        canary = self._canary
        if canary is not None and canary[0] == wd:
            if mask & Bits.IN_IGNORED:
                self._canary = None
            else:
                self._on_canary()
            return
        directory = self._by_wd.get(wd)
        if directory is None:
            return  # released meanwhile, or not yet entered: then the footprint being taken looks after it
        gone = bool(mask & GONE_BITS)
        entry = bool(mask & ENTRY_BITS)
        name = os.fsdecode(raw_name)
        if gone:
            # Stays in the table until the footprint is taken anew, but is never taken for its successor,
            # which can have the same inode number.
            self._by_identity.pop(directory.identity, None)
            directory.identity = _ended(wd)
        for key, interest in tuple(directory.interests.items()):
            if gone or (entry and interest.matches(name)):
                self._on_change(key, True)  # noqa: FBT003  # (key, moved)
            elif interest.contents:
                # A directory that came, went, or can be read only now.
                self._on_change(
                    key, bool(mask & Bits.IN_ISDIR) and bool(mask & (ENTRY_BITS | Bits.IN_ATTRIB))
                )

    # -- the kernel --

    def _watch(self, fd: int, identity: Identity, mask: int) -> _Directory:
        wd, callback = self._add(fd, mask)
        directory = self._by_wd.get(wd)
        if directory is None:
            directory = self._by_wd[wd] = _Directory(wd, identity, mask, callback)
        else:
            self._remove(wd, directory.callback)
            directory.callback, directory.identity = callback, identity
            directory.mask = mask
        self._by_identity[identity] = wd
        return directory

    def _add(self, fd: int, mask: int) -> tuple[int, int]:
        # The magic link leads to exactly the open file, whatever its path leads to by now.
        callback = next(self._ids)
        wd = self._reader.add_callback(
            b"/proc/self/fd/%d" % fd, cast("Mask", mask), cast("Any", self), cast("CallbackId", callback)
        )
        if wd == -1:  # watchdog takes EACCES for success
            self._remove(-1, callback)
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return wd, callback

    def _remove(self, wd: int, callback: int) -> None:
        with contextlib.suppress(OSError):
            self._reader.remove_callbacks([(cast("WatchDescriptor", wd), cast("CallbackId", callback))])

    def _release(self, key: str, wd: int) -> None:
        directory = self._by_wd.get(wd)
        if directory is None:
            return
        directory.interests.pop(key, None)
        if not directory.interests:
            self._drop(directory)

    def _drop(self, directory: _Directory) -> None:
        del self._by_wd[directory.wd]
        if self._by_identity.get(directory.identity) == directory.wd:
            del self._by_identity[directory.identity]
        self._remove(directory.wd, directory.callback)
