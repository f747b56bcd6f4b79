"""The files of a checkpoint, read without ever leaving its directory.

A checkpoint is foreign data: another program writes it, at any moment, and whoever can write there decides
what lies in it. So everything below its root is opened relative to one directory descriptor, component by
component, with ``O_NOFOLLOW`` (no link leads out of it) and ``O_NONBLOCK`` (no FIFO or device holds us up).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Self

from spancat_daemon.errors import Moved, Rejected, Vanished

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

MAX_FILES = 10_000
"""Most files and directories of a checkpoint: a pipeline of 100 components has about 300, so more is a
mistake in ``source`` (a whole runs folder, a home directory), and walking it at each event costs seconds."""

MAX_DEPTH = 16
"""Deepest nesting: spaCy writes two levels, components with sub-pipelines or tokenizer folders a few more."""

MAX_PATH_BYTES = 1024
"""Longest relative path: together with the deployment folder's own it must stay below PATH_MAX (4,096)."""

SMALL_FILE_BYTES = 64 << 20
"""What `Source.read_small` reads into memory at most: config.cfg, meta.json and cfg are kilobytes."""

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# What an open or stat below the root can fail with when another process is just replacing things there.
_RACES = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EAGAIN, errno.ENXIO}
# What is not the checkpoint's fault: it passes as OSError, and the next attempt may well succeed.
_OUR_SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR}

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass(frozen=True, slots=True)
class Stamp:
    """Everything about a file that changes when its bytes do. Times are nanoseconds since the epoch."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp in a result of stat."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file of a checkpoint: ``path`` is relative to its root, with ``/`` between components."""

    path: str
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Tree:
    """What a checkpoint's directory held at one scan, sorted by path; trees are equal if nothing changed."""

    files: tuple[SourceFile, ...]
    directories: tuple[str, ...]
    by_path: Mapping[str, SourceFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_path", {file.path: file for file in self.files})

    @property
    def total_bytes(self) -> int:
        """Sum of the files' lengths (what a copy can take at most; sparse files hold less on disk)."""
        return sum(file.stamp.size for file in self.files)


class Source:
    """A checkpoint's directory, held open; a context manager.

    It stays the same directory when the path comes to lead elsewhere: after ``rmtree`` + ``copytree`` of the
    trainer the old one is empty and scans as `Vanished`, never as a mix of both.

    Attributes:
        path: where it was opened, for messages.
        fd: the directory's descriptor, valid until `close`.
        has_successor: whether its place is taken when it is removed: then that is `Moved`, not `Vanished`.
    """

    def __init__(self, path: Path, fd: int, *, has_successor: bool = False) -> None:
        self.path = path
        self.fd = fd
        self.has_successor = has_successor

    @classmethod
    def open(cls, path: Path) -> Source:
        """Open the checkpoint at ``path``, which may itself lead through symbolic links.

        Raises:
            Vanished: there is nothing at ``path``.
            Rejected: it is not a directory, or may not be opened.
        """
        try:
            fd = os.open(path, _OPEN_DIRECTORY & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            raise Vanished("there is no checkpoint (yet)", where=str(path)) from None
        except NotADirectoryError:
            raise Rejected(
                "is not a directory", where=str(path), hint="`source` must be the folder that spaCy saves to"
            ) from None
        except OSError as error:
            _give_up(error, str(path))
        return cls(path, fd)

    def below(self, name: str, *, has_successor: bool = False) -> Source:
        """Open one of its own directories by itself; a link is not one.

        Raises:
            Vanished: there is nothing of that name.
            Rejected: it is not a directory, or may not be opened.
        """
        path = self.path / name
        try:
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=self.fd)
        except FileNotFoundError:
            raise Vanished("there is no checkpoint (yet)", where=str(path)) from None
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                raise Rejected(
                    "is not a directory, and links are not followed here", where=str(path), hint="remove it"
                ) from None
            _give_up(error, str(path))
        return Source(path, fd, has_successor=has_successor)

    def last_name(self, pattern: re.Pattern[str]) -> str | None:
        """The greatest of the names in it that are `pattern` as a whole; None if none is.

        Raises:
            Rejected: it can't be listed.
            Moved: it was replaced meanwhile.
            Vanished: it was removed.
        """
        try:
            with os.scandir(self.fd) as entries:
                return max((entry.name for entry in entries if pattern.fullmatch(entry.name)), default=None)
        except OSError as error:
            self._vanished_or_moved(error, "")

    def close(self) -> None:
        """Close the descriptor; harmless when closed already."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def scan(self) -> Tree:
        """List everything in the checkpoint with its stamps. Opens directories only, never a file.

        Raises:
            Rejected: something that is neither file nor directory, a name that can't be published, a
                directory that can't be read, or more than the limits above allow.
            Moved: something was replaced while it was looked at.
            Vanished: the checkpoint's directory was removed (Moved, if it has a successor).
        """
        files: list[SourceFile] = []
        directories: list[str] = []
        pending = [""]
        while pending:
            parent = pending.pop()
            try:
                for name, status in self._entries(parent):
                    path = f"{parent}/{name}" if parent else name
                    self._check_name(path, name)
                    kind = stat.S_IFMT(status.st_mode)
                    if kind == stat.S_IFREG:
                        self._check_ours(path, status)
                        files.append(SourceFile(path, Stamp.of(status)))
                    elif kind == stat.S_IFDIR:
                        self._check_depth(path)
                        directories.append(path)
                        pending.append(path)
                    else:
                        raise Rejected(
                            f"is {_KINDS.get(kind, 'not a regular file')}, which is never followed or read",
                            where=self._where(path),
                            hint="a checkpoint holds regular files only: replace or remove it",
                        )
                    if len(files) + len(directories) > MAX_FILES:
                        raise Rejected(
                            f"holds more than {MAX_FILES:,} files and directories",
                            where=str(self.path),
                            hint="is `source` really one checkpoint?",
                        )
            except OSError as error:
                self._vanished_or_moved(error, parent)
        self._check_present()
        files.sort(key=lambda file: file.path)
        directories.sort()
        return Tree(tuple(files), tuple(directories))

    def open_file(self, file: SourceFile) -> int:
        """Open one file for reading, exactly as it was at the scan; the caller closes the descriptor.

        Raises:
            Moved: it is gone, replaced, or its stamp differs.
            Rejected: it can't be opened (permission, I/O error).
        """
        *parents, name = file.path.split("/")
        try:
            directory = self._open_directory(parents)
            try:
                fd = os.open(name, _OPEN_FILE, dir_fd=directory)
            finally:
                if directory != self.fd:
                    os.close(directory)
        except OSError as error:
            self._vanished_or_moved(error, file.path)
        try:
            status = os.fstat(fd)
        except OSError as error:
            os.close(fd)
            self._vanished_or_moved(error, file.path)
        if not stat.S_ISREG(status.st_mode) or Stamp.of(status) != file.stamp:
            os.close(fd)
            raise Moved("changed since it was looked at", where=self._where(file.path))
        return fd

    def read_small(self, file: SourceFile, limit_bytes: int = SMALL_FILE_BYTES) -> bytes:
        """Read a whole file of at most ``limit_bytes``.

        Raises:
            Rejected: it is larger, or can't be read.
            Moved: it is not as it was at the scan.
        """
        if file.stamp.size > limit_bytes:
            raise Rejected(
                f"has {file.stamp.size:,} bytes, where at most {limit_bytes:,} make sense",
                where=self._where(file.path),
            )
        fd = self.open_file(file)
        try:
            data = bytearray()
            # One byte more than expected shows a file that grew while it was read.
            while chunk := os.read(fd, file.stamp.size + 1 - len(data)):
                data += chunk
                if len(data) > file.stamp.size:
                    break
        except OSError as error:
            self._vanished_or_moved(error, file.path)
        finally:
            os.close(fd)
        if len(data) != file.stamp.size:
            raise Moved("changed while it was read", where=self._where(file.path))
        return bytes(data)

    def unchanged(self, tree: Tree) -> None:
        """Prove that the checkpoint still is what ``tree`` says.

        Raises:
            Moved: anything differs: a file more or less, an inode, a size, a time.
            Vanished, Rejected: as `scan`.
        """
        now = self.scan()
        if now == tree:
            return
        for path in sorted(now.by_path.keys() | tree.by_path.keys()):
            if now.by_path.get(path) != tree.by_path.get(path):
                raise Moved("changed while it was read", where=self._where(path))
        raise Moved("directories changed while it was read", where=str(self.path))

    def directory_mtime_ns(self, path: str) -> int:
        """Return when a directory of it, "" for itself, last got or lost an entry, or was given a time.

        Raises:
            Moved, Vanished, Rejected: as `scan`.
        """
        try:
            directory = self._open_directory(path.split("/") if path else [])
            try:
                return os.fstat(directory).st_mtime_ns
            finally:
                if directory != self.fd:
                    os.close(directory)
        except OSError as error:
            self._vanished_or_moved(error, path)

    def _entries(self, parent: str) -> Iterable[tuple[str, os.stat_result]]:
        directory = self._open_directory(parent.split("/") if parent else [])
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    yield entry.name, entry.stat(follow_symlinks=False)
        finally:
            if directory != self.fd:
                os.close(directory)

    def _open_directory(self, parts: list[str]) -> int:
        """Descend component by component, so that no link in the middle is followed either."""
        directory = self.fd
        for part in parts:
            try:
                below = os.open(part, _OPEN_DIRECTORY, dir_fd=directory)
            finally:
                if directory != self.fd:
                    os.close(directory)
            directory = below
        return directory

    def _check_name(self, path: str, name: str) -> None:
        # A single character class test for the usual case; the slow look only decides about the unusual.
        if not name.isprintable() and _holds_controls(name):
            raise Rejected(
                "has a name that is not valid UTF-8 or holds control characters",
                where=self._where(path),
                hint="rename or remove it",
            )
        if len(path.encode()) > MAX_PATH_BYTES:
            raise Rejected(
                f"has a path of more than {MAX_PATH_BYTES:,} bytes", where=self._where(path[:80] + "…")
            )

    def _check_ours(self, path: str, status: os.stat_result) -> None:
        # Whoever may not read a file can give it one more name, where fs.protected_hardlinks allows that, and
        # let whoever may copy it for them.
        secret = status.st_nlink > 1 and not status.st_mode & stat.S_IROTH
        if secret and status.st_uid != os.fstat(self.fd).st_uid:
            raise Rejected(
                f"is a hard link to a file of another user (uid {status.st_uid}) that not everybody may read",
                where=self._where(path),
                hint="replace it with a copy",
            )

    def _check_depth(self, path: str) -> None:
        if path.count("/") + 1 > MAX_DEPTH:
            raise Rejected(f"is nested deeper than {MAX_DEPTH} directories", where=self._where(path))

    def _check_present(self) -> None:
        # A removed directory stays readable through its descriptor, and is empty then.
        if os.fstat(self.fd).st_nlink == 0:
            gone = Moved if self.has_successor else Vanished
            raise gone("the checkpoint was removed", where=str(self.path))

    def _vanished_or_moved(self, error: OSError, path: str) -> NoReturn:
        self._check_present()
        if error.errno in _RACES:
            raise Moved("was replaced while it was looked at", where=self._where(path)) from None
        _give_up(error, self._where(path))

    def _where(self, path: str) -> str:
        return f"{self.path}/{shown(path)}"


def shown(path: str) -> str:
    """A file name fit for a message: undecodable bytes and control characters as escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _give_up(error: OSError, where: str) -> NoReturn:
    if error.errno in _OUR_SHORTAGE:
        raise error
    hint = ""
    if error.errno in {errno.EACCES, errno.EPERM}:
        hint = "give the daemon's user the right to read it"
    raise Rejected(f"can't be read: {error.strerror}", where=where, hint=hint) from error


def _holds_controls(name: str) -> bool:
    import unicodedata  # noqa: PLC0415  # 0.7 MB, for names that hardly any checkpoint has

    return any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in name)
