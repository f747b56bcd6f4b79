"""What somebody has saved into a deployment folder to be taken from there, and who still needs it.

An entry is a directory of ``incoming/``. Whoever works on it holds a shared ``flock`` on it: the one who
saved it, and a daemon that it was handed over to. The kernel ends that when they end, however they end; what
nobody holds is swept away by the next recovery.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from typing import TYPE_CHECKING, Final, Self

from spancat_daemon.errors import UsageError, Vanished
from spancat_daemon.release.removal import remove_tree
from spancat_daemon.release.survey import names_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME: Final = re.compile(r"[0-9]{1,10}-[0-9a-f]{16}")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry:
    """A held entry; a context manager that lets go of it. Made by `make` or `take`.

    Attributes:
        path: its directory.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._pid = os.getpid()

    @property
    def name(self) -> str:
        """What it is handed over by."""
        return self.path.name

    def remove(self) -> None:
        """Remove its files, also while somebody reads them; harmless if they are gone.

        Raises:
            OSError: something can't be removed; recovery tries it again.
        """
        remove_tree(self.path)

    def release(self) -> None:
        """Let go of it; harmless if that was done before."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        if os.getpid() == self._pid:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor, too
        os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def make(incoming_path: Path) -> Entry:
    """Make a new entry and hold it.

    Raises:
        OSError: it can't be made.
    """
    while True:
        path = incoming_path / f"{os.getpid()}-{secrets.token_hex(8)}"
        path.mkdir(0o755)
        with contextlib.suppress(Vanished):  # swept away before it was held
            return take(incoming_path, path.name)


def take(incoming_path: Path, name: str) -> Entry:
    """Hold an entry that somebody made.

    Raises:
        UsageError: that is no name of an entry, or what has it is no directory.
        Vanished: it is gone, or being swept away.
        OSError: it can't be opened.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"{name!r} is no name of something saved")
    path = incoming_path / name
    try:
        fd = _open(incoming_path, name)
    except FileNotFoundError:
        raise Vanished("what was saved is not there any more", where=str(path)) from None
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise UsageError("is no directory of its own", where=str(path)) from None
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.lstat()):
            return Entry(path, fd)
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise Vanished("what was saved is not there any more", where=str(path))


def sweep(incoming_path: Path) -> list[str]:
    """Remove what nobody holds; what can't be removed, such as another user's, stays for the next time.

    Returns:
        The names of what is gone.
    """
    gone: list[str] = []
    for name in names_in(incoming_path):
        with contextlib.suppress(OSError), _unheld(incoming_path, name):
            remove_tree(incoming_path / name)
            gone.append(name)
    return gone


@contextlib.contextmanager
def _unheld(incoming_path: Path, name: str) -> Iterator[None]:
    """Keep others from holding it; raises OSError if somebody does."""
    try:
        fd = _open(incoming_path, name)
    except NotADirectoryError:  # a file or a link, which nobody here makes
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _open(incoming_path: Path, name: str) -> int:
    parent = os.open(incoming_path, _DIRECTORY)
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    finally:
        os.close(parent)
