"""Reading a small file that somebody else writes: a pidfile, a secret."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from spancat_daemon.errors import SpancatDaemonError

if TYPE_CHECKING:
    from pathlib import Path

_LARGEST_BYTES: Final = 64 << 10
_OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def read_small(path: Path) -> tuple[bytes, os.stat_result]:
    """The file's content and status; never blocks, whatever the path leads to.

    Raises:
        SpancatDaemonError: it can't be read, is no regular file, or too large.
    """
    where = os.fsencode(path).decode("utf-8", "backslashreplace")
    try:
        fd = os.open(path, _OPEN)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SpancatDaemonError("it is no regular file", where=where)
            with os.fdopen(fd, "rb", closefd=False) as file:
                content = file.read(_LARGEST_BYTES + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise SpancatDaemonError(f"it can't be read: {error.strerror or error}", where=where) from error
    if len(content) > _LARGEST_BYTES:
        raise SpancatDaemonError(f"it is larger than {_LARGEST_BYTES >> 10} KiB", where=where)
    return content, status
