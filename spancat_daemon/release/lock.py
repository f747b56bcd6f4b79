"""Who may change a deployment folder: whoever holds its lock, of whom there is one at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from spancat_daemon.checkpoint.tree import shown
from spancat_daemon.errors import about
from spancat_daemon.release.survey import FolderBusy

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a folder, by their own word.

    Attributes:
        pid: the process.
        command: what it is, for people.
        since: when it took the folder.
        host: the machine.
        control: the socket that a daemon can be asked at; None if it is none.
    """

    pid: int
    command: str
    since: str
    host: str
    control: Path | None

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid} on {self.host}, since {self.since})"


class HeldElsewhere(FolderBusy):
    """Somebody else holds the folder.

    Attributes:
        holder: who; None if they have not said so yet.
    """

    def __init__(self, folder: Path, holder: Holder | None) -> None:
        self.holder = holder
        super().__init__(
            f"is held by {holder or 'another process'}",
            where=str(folder),
            hint="go through the running daemon, or stop it first",
        )


class Lock:
    """A held folder, made by `hold`."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._said: dict[str, Any] = {}

    def is_held(self) -> bool:
        """Whether it still is: not if it, or the lock in it, was deleted, moved or replaced."""
        return self._fd >= 0 and _is_lock(self._path, self._fd)

    def say(self, holder: str, *, since: str, control: Path | None) -> None:
        """Write down who holds it, for those who find it held."""
        self._said = {
            "pid": os.getpid(),
            "command": holder,
            "since": since,
            "host": os.uname().nodename,
        }
        self.reachable_at(control)

    def reachable_at(self, control: Path | None) -> None:
        """Write down where its holder can be asked from now on."""
        socket = {"control": str(control)} if control is not None else {}
        with contextlib.suppress(OSError, TypeError):  # a full disk, a path that is not UTF-8: it is held
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, orjson.dumps(self._said | socket) + b"\n", 0)

    def let_go(self, *, unlock: bool = True) -> None:
        """Let the folder go; harmless if it was. Unlocked it is for a forked child's copy as well."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if unlock:
                with contextlib.suppress(OSError):  # closing it does so too, but for a fork that has it
                    fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


_locks: Final[set[Lock]] = set()


def _let_go_in_child() -> None:
    # Else a child that outlives its parent would keep a folder held that nobody works on.
    for lock in _locks:
        lock.let_go(unlock=False)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def hold(folder: Path, path: Path, holder: str, *, since: str, control: Path | None) -> Iterator[Lock]:
    """Hold a folder; the kernel lets go of it when the process ends, however it ends.

    A child that is forked meanwhile does not hold it.

    Args:
        folder: which, for messages.
        path: the lock in it.
        holder: what holds it, for people: a command.
        since: when it was taken, for people.
        control: the socket that the holder can be asked at.

    Raises:
        HeldElsewhere: somebody else holds it; says who.
        OSError: the folder is not prepared.
    """
    lock = Lock(path, _locked(folder, path))
    _locks.add(lock)
    try:
        lock.say(holder, since=since, control=control)
        yield lock
    finally:
        _locks.discard(lock)
        lock.let_go()


def _locked(folder: Path, path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            with about(path):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_lock(path, fd):  # else deleted meanwhile: holding it excludes nobody
                    return fd
        except OSError as error:
            holder = _read_holder(fd)
            os.close(fd)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise HeldElsewhere(folder, holder) from None
        os.close(fd)


def _is_lock(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _read_holder(fd: int) -> Holder | None:
    try:
        said = orjson.loads(os.pread(fd, 8192, 0))
        pid, control = said["pid"], said.get("control")
        command, since, host = (shown(said[key]) for key in ("command", "since", "host"))
        if not isinstance(pid, int) or (control and ("\0" in control or not control.startswith("/"))):
            return None
        return Holder(pid, command, since, host, control=Path(control) if control else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
