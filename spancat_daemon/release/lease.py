"""A reader's hold on a release: while it lasts, retention does not take the release away.

A lease is a shared ``flock`` on the release's ``release.json``, so any program can hold one, in a shell too::

    cd -P models/products/current && flock --shared release.json sh -c 'test -e release.json && exec serve .'

The kernel ends it when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING, Self

from spancat_daemon.errors import SpancatDaemonError, Vanished, about
from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.release.manifest import Manifest

_ATTEMPTS = 1000  # each fails only if a swap or a pruning falls between two system calls
_TURNS, _TURN_S = 3000, 0.01  # who is stopped, or means ill, must not keep a server waiting unheard
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MANIFEST = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Lease:
    """A held release; a context manager. Made by `take`.

    Attributes:
        directory_fd: the release's directory. Reading relative to it stays in this one release, also where
            the release moves when it is replaced (``swap = "exchange"``).
    """

    def __init__(self, directory_fd: int, manifest_fd: int) -> None:
        self.directory_fd = directory_fd
        self._manifest_fd = manifest_fd

    def manifest(self) -> Manifest:
        """Read the held release's manifest.

        Raises:
            BadManifest: it is damaged.
        """
        size = os.fstat(self._manifest_fd).st_size
        return manifests.parse(os.pread(self._manifest_fd, size, 0), where=MANIFEST_NAME)

    def release(self) -> None:
        """Let go; harmless if it was let go before."""
        for fd in (self._manifest_fd, self.directory_fd):
            if fd >= 0:
                os.close(fd)
        self._manifest_fd = self.directory_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take(release_path: Path) -> Lease:
    """Hold the release that a path leads to.

    Args:
        release_path: a release's directory, or ``current``: then whatever is live once it is held.

    Raises:
        Vanished: there is no release.
        OSError: it can't be opened; or somebody has kept all readers out for half a minute, which pruning
            does no longer than it takes to remove a release.
    """
    for _ in range(_ATTEMPTS):
        with contextlib.ExitStack() as undo:
            try:
                directory_fd = os.open(release_path, _DIRECTORY)
                undo.callback(os.close, directory_fd)
                manifest_fd = os.open(MANIFEST_NAME, _MANIFEST, dir_fd=directory_fd)
            except FileNotFoundError:
                if not os.path.lexists(release_path) or _gone(release_path):
                    raise Vanished("there is no release", where=str(release_path)) from None
                continue
            undo.callback(os.close, manifest_fd)
            with about(release_path):
                _share(manifest_fd)
            # Pruned, or no longer what the path leads to, between the opening and the lock?
            if _leads_to(release_path, directory_fd) and os.fstat(manifest_fd).st_nlink > 0:
                undo.pop_all()
                return Lease(directory_fd, manifest_fd)
    raise SpancatDaemonError("changes too fast to be held", where=str(release_path), hint="try again")


def _share(manifest_fd: int) -> None:
    """Lock it together with other readers; waits for who keeps them out, but not for ever."""
    for _ in range(_TURNS):
        try:
            fcntl.flock(manifest_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TURN_S)
        else:
            return
    raise BlockingIOError(errno.EWOULDBLOCK, f"a process has an exclusive lock on {MANIFEST_NAME}")


def is_leased(release_path: Path) -> bool:
    """Whether someone holds the release; one that is gone is not held."""
    try:
        fd = os.open(release_path / MANIFEST_NAME, _MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        with about(release_path):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def lock_out(release_path: Path) -> int | None:
    """Keep readers out of a release that is about to be pruned.

    Returns:
        A descriptor to close when it is gone; readers that wait for it then see that. ``None`` if someone
        holds the release.

    Raises:
        OSError: there is no such release.
    """
    fd = os.open(release_path / MANIFEST_NAME, _MANIFEST)
    try:
        with about(release_path):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _leads_to(path: Path, directory_fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(directory_fd))
    except FileNotFoundError:
        return False


def _gone(path: Path) -> bool:
    """Whether a path leads nowhere, or to a directory without a manifest, twice in a row to the same."""
    try:
        before = path.stat()
        return not (path / MANIFEST_NAME).exists() and os.path.samestat(before, path.stat())
    except FileNotFoundError:
        return not os.path.lexists(path) or not path.exists()
