"""A unix socket at a path: made so that nobody else can use it, never over something that is not ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spancat_daemon.errors import SpancatDaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# sockaddr_un.sun_path holds 108 bytes with the closing NUL, unix(7).
_LONGEST_ADDRESS_BYTES: Final = 107
_PLACE_LOCK_TIMEOUT_S: Final = 5.0
_PEER: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel says: not to be forged."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected, or on a client's side the one that listens."""
    return Peer(*_PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)))


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[bytes]:
    """What to bind or connect to for a path of any length.

    A path that an address has no room for is reached through its folder's descriptor.

    Raises:
        OSError: the folder can't be opened, or the path's last part alone is too long (ENAMETOOLONG).
    """
    plain = os.fsencode(path)
    if len(plain) <= _LONGEST_ADDRESS_BYTES:
        yield plain
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = os.fsencode(f"/proc/self/fd/{folder}/{path.name}")
        if len(short) > _LONGEST_ADDRESS_BYTES:
            raise OSError(errno.ENAMETOOLONG, "the name is too long for a unix socket", os.fspath(path))
        yield short
    finally:
        os.close(folder)


def connect(path: Path, timeout_s: float) -> socket.socket:
    """Connects to the socket.

    Raises:
        OSError: nobody listens (FileNotFoundError, ConnectionRefusedError), or it can't be reached.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        with address_of(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def listen(path: Path, *, backlog: int = 16) -> socket.socket:
    """A listening socket at the path, of mode 0600 from its first instant.

    A socket that nobody listens on any more is replaced; nothing else ever is.

    Raises:
        SpancatDaemonError: there is something that is no socket, another process listens there, or it can't
            be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # bind(2) gives the new file the socket's own mode: no umask to change, no moment in between.
        os.fchmod(listener.fileno(), 0o600)
        with _place_locked(path), address_of(path) as address:
            _clear(path)
            listener.bind(address)
            listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise SpancatDaemonError(
            f"the control socket can't be made: {error.strerror or error}",
            where=str(path),
            hint="give [daemon] control_socket another path, or let the daemon's user write to its folder",
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _place_locked(path: Path) -> Iterator[None]:
    """Keeps two daemons that start at once from each taking the other's new socket for a stale one."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _PLACE_LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
    finally:
        os.close(folder)


def _clear(path: Path) -> None:
    """Removes a stale socket; raises when what is there is anything else."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SpancatDaemonError(
            "there is something else where the control socket should be; it is left alone",
            where=str(path),
            hint="move it away, or give [daemon] control_socket another path",
        )
    try:
        with connect(path, timeout_s=2.0) as connection:
            owner = f"process {peer_of(connection).pid}"
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except OSError as error:  # a full backlog, no permission: somebody may well be there
        owner = f"somebody who can't be reached ({error.strerror or error})"
    raise SpancatDaemonError(
        f"another daemon listens on the control socket: {owner}",
        where=str(path),
        hint="stop it first, or give this one its own [daemon] control_socket and state_dir",
    )
