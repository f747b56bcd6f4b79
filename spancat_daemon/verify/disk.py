"""Reading files as the disk has them, not as the page cache remembers them.

A byte that rots on the disk stays as it was in the page cache until its page is dropped, which for files that
are served can take weeks: what reads through the cache finds nothing until the next restart. So files are
read with ``O_DIRECT``: that also leaves the cache as it is, neither filled with releases that nobody serves
nor emptied of the one that is served.

Where a file system has no ``O_DIRECT``, the file's clean pages are dropped before it is read. That costs the
next reader of the live release one reading from the disk; servers keep a model in their own memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES: Final = 1 << 20
"""The most that is read at once: a multiple of every block size, and little enough to stop in between."""

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_REFUSED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


class Disk:
    """A buffer to read through; for one thread at a time."""

    def __init__(self) -> None:
        self._buffer = memoryview(mmap.mmap(-1, PIECE_BYTES))  # of whole pages, as O_DIRECT asks for

    def pieces(self, fd: int) -> Iterator[memoryview]:
        """Yield a regular file's bytes from its beginning; each piece is overwritten by the next one.

        Args:
            fd: of the file, made by `open_file`.

        Raises:
            OSError: it can't be read on.
        """
        place = 0
        while True:
            try:
                count = os.preadv(fd, [self._buffer], place)
            except OSError as error:
                if error.errno not in _REFUSED or not _make_indirect(fd):
                    raise
                continue
            if not count:
                return
            place += count
            yield self._buffer[:count]


def open_file(name: str, directory: int) -> int:
    """Open a file of a directory for `Disk.pieces`; follows no link, and waits for no other end of a pipe.

    Raises:
        OSError: it can't be opened.
    """
    try:
        return os.open(name, _FLAGS | os.O_DIRECT, dir_fd=directory)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
    fd = os.open(name, _FLAGS, dir_fd=directory)
    _forget(fd)
    return fd


def _make_indirect(fd: int) -> bool:
    """Go on through the page cache; False if that was so already."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if not flags & os.O_DIRECT:
        return False
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    _forget(fd)
    return True


def _forget(fd: int) -> None:
    # Pages that are dirty, or mapped into a process, stay: what is dirty is not on the disk yet.
    with contextlib.suppress(OSError):  # not a file: reading it will say so
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
