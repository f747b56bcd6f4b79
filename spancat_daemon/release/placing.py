"""The files of a snapshot, put in their places: linked where nothing changed, copied where something did."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from spancat_daemon.checkpoint.tree import shown
from spancat_daemon.errors import Moved, Rejected, SpancatDaemonError, name_place
from spancat_daemon.release.copying import Copier, UnreadableSourceError, same_content
from spancat_daemon.release.digesting import Intake
from spancat_daemon.release.manifest import MODEL_NAME, FileDigest
from spancat_daemon.release.syncing import sync_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from spancat_daemon.checkpoint.contents import Plan, Planned
    from spancat_daemon.checkpoint.tree import Source
    from spancat_daemon.release.copying import Copied
    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.folder import Release

FILE_MODE: Final = 0o444
DIRECTORY_MODE: Final = 0o755
UNDER_CONSTRUCTION: Final = 0o700  # of the root, and so of all below it
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_PREVIOUS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_AT_ONCE: Final = 64  # new files that are not concluded; a common limit for all descriptors is 1,024

# Why a hard link can't be made where a copy can: too many links, another file system or mount, one without
# links, a file of another owner (protected_hardlinks), a file that is gone.
_NO_LINK = {
    errno.EMLINK,
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.ENOENT,
}


class Abandoned(SpancatDaemonError):  # noqa: N818  # a wish of the caller, not a fault
    """Staging was given up because its caller asked for it."""


@dataclass(slots=True)
class _New:
    """A file that was written, and perhaps is not on stable storage yet, nor wholly digested.

    Attributes:
        path: relative.
        size: its length.
        fd: it, open.
        source: what it is a copy of, open as long as that is read.
        copied: tells its digest.
        stays: it is on stable storage.
    """

    path: str
    size: int
    fd: int
    source: int | None = None
    copied: Copied | None = None
    stays: bool = False

    def sha256(self) -> str:
        assert self.copied is not None  # noqa: S101  # what could not be copied has ended the staging
        digest = self.copied.sha256()
        self._let_source_go()
        return digest

    def close(self) -> None:
        self._let_source_go()
        os.close(self.fd)

    def _let_source_go(self) -> None:
        if self.source is not None:
            source, self.source = self.source, None
            os.close(source)


class Placing:
    """A staging directory while it is filled; a context manager that holds its descriptors.

    Attributes:
        files: digest and size of what is in place; complete after `conclude`.
        linked: the paths that are hard links of the previous release's.
        bytes_written: size of all others.
    """

    def __init__(
        self,
        path: Path,
        source: Source,
        previous: Release | None,
        durability: Durability,
        abandoned: Callable[[], bool],
    ) -> None:
        self.files: dict[str, FileDigest] = {}
        self.linked: list[str] = []
        self.bytes_written = 0
        self._path = path
        self._source = source
        self._durability = durability
        self._abandoned = abandoned
        self._new: deque[_New] = deque()
        self._copier = Copier(durability, self._proceed)
        self._known = previous.manifest.files if previous is not None else {}
        self._root = os.open(path, OPEN_DIRECTORY)
        self._previous = _open_previous(previous)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._copier.close()  # first: nothing may read a descriptor that is closed, or another file's by then
        for new in self._new:
            new.close()
        if self._previous is not None:
            os.close(self._previous)
        os.close(self._root)

    def fill(self, plan: Plan) -> None:
        """Put every file in its place, the largest first: their way to the disk is the longest.

        After that the checkpoint is not read any more.
        """
        for directory in sorted(directories_of(planned.path for planned in plan.files)):
            with self._saying(directory):
                os.mkdir(directory, DIRECTORY_MODE, dir_fd=self._root)
                os.chmod(directory, DIRECTORY_MODE, dir_fd=self._root)  # whatever the umask
        for planned in sorted(plan.files, key=planned_bytes, reverse=True):
            self._proceed()
            with self._saying(planned.path):
                self._add(planned)
        with self._saying(MODEL_NAME):
            self._link_model(plan.model_file)
        clones = [new for new in self._new if new.source is not None]
        if clones:
            # A clone's digest is of the checkpoint's bytes, which takes as long as the disk does.
            self._make_stay()
        for new in clones:
            with self._saying(new.path):
                new.sha256()

    def conclude(self) -> None:
        """Make the bytes of all new files stay, and have their digests and proofs.

        Raises:
            Rejected: a file is not whole.
            OSError: it could not be made to stay; never to be tried again.
        """
        self._make_stay()
        while self._new:
            new = self._new[0]
            with self._saying(new.path):
                self._proceed()
                self.files[new.path] = FileDigest(sha256=new.sha256(), bytes=new.size)
            self._new.popleft()
            new.close()

    def _make_stay(self) -> None:
        """Sync what is not yet; digesting goes on meanwhile: it only reads."""
        sync_all([partial(self._sync, new) for new in self._new if not new.stays], on=self._path)

    def _sync(self, new: _New) -> None:
        with self._saying(new.path):
            self._proceed()
            self._durability.sync_file(new.fd)
            new.stays = True

    def _add(self, planned: Planned) -> None:
        fd = self._source.open_file(planned.source) if planned.source is not None else None
        try:
            digest = self._link(planned, fd)
            if digest is not None:
                self.files[planned.path] = digest
            elif self._copy(planned, fd).needs_source:
                self._new[-1].source, fd = fd, None
        finally:
            if fd is not None:
                os.close(fd)

    def _link(self, planned: Planned, fd: int | None) -> FileDigest | None:
        """Make a file a hard link of the previous release's, if that is there and the same."""
        known = self._known.get(planned.path)
        if self._previous is None or known is None or known.bytes != planned_bytes(planned):
            return None
        try:
            other = os.open(planned.path, _OPEN_PREVIOUS, dir_fd=self._previous)
        except OSError:
            return None
        try:
            status = os.fstat(other)
            if status.st_size != known.bytes or status.st_mode != stat.S_IFREG | FILE_MODE:
                return None  # somebody has been at it
            if not self._equals(planned, fd, other):
                return None
            return known if self._link_to(planned.path, status) else None
        finally:
            os.close(other)

    def _equals(self, planned: Planned, fd: int | None, other: int) -> bool:
        if fd is None:
            try:
                return os.pread(other, planned_bytes(planned) + 1, 0) == planned.data
            except OSError:
                return False
        proof = planned.proof() if planned.proof is not None else None
        return same_content(fd, other, planned_bytes(planned), proof, self._proceed)

    def _link_to(self, path: str, status: os.stat_result) -> bool:
        try:
            os.link(path, path, src_dir_fd=self._previous, dst_dir_fd=self._root, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise
        linked = os.stat(path, dir_fd=self._root, follow_symlinks=False)
        if not os.path.samestat(linked, status):  # replaced between the comparison and the link
            os.unlink(path, dir_fd=self._root)
            return False
        self.linked.append(path)
        return True

    def _copy(self, planned: Planned, fd: int | None) -> Copied:
        intake = Intake(planned.proof() if planned.proof is not None else None)
        new = self._create(planned.path, planned_bytes(planned))
        if fd is not None:
            new.copied = self._copier.copy(fd, new.fd, new.size, intake)
        else:
            new.copied = self._copier.write(new.fd, planned.data or b"", intake)
        return new.copied

    def _create(self, path: str, size: int) -> _New:
        if len(self._new) >= _OPEN_AT_ONCE:
            self.conclude()
        fd = os.open(path, CREATE, FILE_MODE, dir_fd=self._root)
        new = _New(path, size, fd)
        self._new.append(new)
        os.fchmod(fd, FILE_MODE)  # whatever the umask
        self.bytes_written += size
        return new

    def _link_model(self, model: str) -> None:
        """Give the model file its second name, ``model.bin``."""
        try:
            self._second_name(model, MODEL_NAME)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            self._copy_model(model)
            if error.errno == errno.EMLINK:  # the last one was taken by the model file itself
                os.unlink(model, dir_fd=self._root)
                self._second_name(MODEL_NAME, model)
                self.linked.remove(model)

    def _copy_model(self, model: str) -> None:
        self.conclude()
        digest = self.files[model]
        fd = os.open(model, _OPEN_PREVIOUS, dir_fd=self._root)
        try:
            new = self._create(MODEL_NAME, digest.bytes)
            new.copied = self._copier.copy(fd, new.fd, new.size, Intake(None))
            self.conclude()
        finally:
            os.close(fd)
        if self.files[MODEL_NAME] != digest:
            raise OSError(errno.EIO, "reads otherwise than it was written", str(self._path / model))

    def _second_name(self, path: str, second: str) -> None:
        os.link(path, second, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)

    def _proceed(self) -> None:
        if self._abandoned():
            raise Abandoned("staging was given up", where=str(self._source.path))

    @contextmanager
    def _saying(self, path: str) -> Iterator[None]:
        """Let every failure say which file it is about."""
        try:
            yield
        except UnreadableSourceError as error:
            raise Rejected(f"can't be read: {error}", where=self._where(path)) from error
        except (Rejected, Moved) as error:
            error.where = error.where or self._where(path)
            raise
        except OSError as error:
            name_place(error, self._path / path)
            raise

    def _where(self, path: str) -> str:
        return f"{self._source.path}/{shown(path)}"


def directories_of(paths: Iterable[str]) -> set[str]:
    """Every directory that leads to one of the (relative) paths."""
    found: set[str] = set()
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found


def planned_bytes(planned: Planned) -> int:
    """Length of a file that is to be staged."""
    return planned.source.stamp.size if planned.source is not None else len(planned.data or b"")


def _open_previous(previous: Release | None) -> int | None:
    if previous is None:
        return None
    try:
        return os.open(previous.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # then everything is copied
