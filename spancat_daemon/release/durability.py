"""The system calls that make bytes stay, and the two renames Python has no name for.

Everything in ``release/`` that must survive a power cut goes through a `Durability`, so that a test can
record the order of the calls or make one of them fail. Facts: ext4, xfs and btrfs lose or tear a file that
was renamed into place without its own fsync, and lose the name itself without the directory's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import TYPE_CHECKING

from spancat_daemon.errors import about

if TYPE_CHECKING:
    from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
_STATFS_BYTES = 256  # the largest struct statfs has 120

_libc = ctypes.CDLL(None, use_errno=True)


class Durability:
    """Makes bytes and names survive a power cut.

    Each call is one attempt. A failed fsync must never be tried again: the kernel drops the pages it could
    not write and marks them clean, so the second attempt succeeds with the data gone. The caller gives up
    what it was making and starts anew from the source.
    """

    def start_writeback(self, fd: int) -> None:
        """Ask the kernel to start writing a file's dirty pages, without waiting and without a promise.

        It only shortens the `sync_file` that follows, so a kernel or file system that can't is no fault; an
        error of the device shows in that `sync_file`.
        """
        if _sync_file_range is not None:
            _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)

    def sync_file(self, fd: int) -> None:
        """Return once the file's bytes and metadata are on stable storage.

        Raises:
            OSError: they may not be, and may not even be in memory any more.
        """
        os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        """Return once the file's bytes, and its size, are on stable storage.

        Raises:
            OSError: as `sync_file`.
        """
        os.fdatasync(fd)

    def sync_directory(self, fd: int) -> None:
        """Return once the names in the directory are on stable storage.

        Raises:
            OSError: as `sync_file`.
        """
        os.fsync(fd)

    def sync_directory_at(self, path: Path) -> None:
        """Do `sync_directory` for a directory that is not open.

        Raises:
            OSError: it can't be opened, or as `sync_file`.
        """
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with about(path):
                self.sync_directory(fd)
        finally:
            os.close(fd)


DURABLE = Durability()


def file_system_type(path: Path) -> int:
    """Return what statfs(2) says of the file system that something lies on, a number of linux/magic.h.

    Zero if it says nothing.
    """
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(os.fsencode(path), found) != 0:
        return 0
    return ctypes.c_ulong.from_buffer(found).value & 0xFFFFFFFF  # the first field, everywhere


def rename_exchange(a: Path, b: Path) -> None:
    """Exchange two names of one file system in one step; both must exist, of whatever kinds.

    Raises:
        OSError: nothing was changed. ``EINVAL`` or ``ENOSYS`` if the file system or kernel can't.
    """
    _rename(a, b, _RENAME_EXCHANGE)


def rename_noreplace(a: Path, b: Path) -> None:
    """Rename without ever replacing what already has the new name.

    Raises:
        OSError: nothing was changed. ``EEXIST`` if the new name is taken; ``EINVAL`` or ``ENOSYS`` if the
            file system or kernel can't.
    """
    _rename(a, b, _RENAME_NOREPLACE)


def _rename(a: Path, b: Path, flags: int) -> None:
    if _renameat2 is None:
        raise OSError(errno.ENOSYS, "the C library has no renameat2", os.fspath(a), None, os.fspath(b))
    if _renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(a), None, os.fspath(b))


_renameat2 = None
with contextlib.suppress(AttributeError):  # glibc < 2.28
    _renameat2 = _libc.renameat2
    _renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    _renameat2.restype = ctypes.c_int

_sync_file_range = None
with contextlib.suppress(AttributeError):  # some architectures and C libraries leave it out
    _sync_file_range = _libc.sync_file_range
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    _sync_file_range.restype = ctypes.c_int
