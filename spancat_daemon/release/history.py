"""The deployment folder's append-only record of what was live when: ``history.jsonl``.

The history is what a crash is judged by, so it fails closed: a record counts only once it is on stable
storage, and a file that is broken anywhere but in an unfinished last line is not written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from spancat_daemon.errors import SpancatDaemonError, about
from spancat_daemon.release import records
from spancat_daemon.release.durability import DURABLE
from spancat_daemon.release.records import Finding, Malformed, Record, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from spancat_daemon.release.durability import Durability

__all__ = ["Finding", "History", "HistoryBroken", "Record", "rfc3339"]

_LONGEST_LINE_BYTES = 64 << 20  # as of a manifest, which holds more

_HINT = (
    "nothing was changed; `spancat-daemon history RULE --verify` shows every break. Once it is understood, "
    "move the file aside: the next start adopts what is live into a new history"
)


_BLOCK = 1 << 14  # some ten records


class HistoryBroken(SpancatDaemonError):  # noqa: N818  # a verdict on a file
    """A history that can't be trusted, and is therefore not written to."""


class History:
    """An open history; the caller holds the folder's lock if it is open for writing.

    A failed `append` has recorded nothing, even if the bytes reached the file: they are taken back before
    anything else is appended.

    Attributes:
        path: the file.
        repaired: what was done to an unfinished last line when it was opened; empty if nothing.
    """

    def __init__(self, path: Path, *, durability: Durability, clock: Callable[[], datetime] | None) -> None:
        """Use `open` or `reading`."""
        self.path = path
        self.repaired = ""
        self._durability = durability
        self._clock = clock
        self._fd = -1
        self._size = 0  # bytes that are known to be on stable storage
        self._failed = False  # whether bytes beyond _size are those of a failed append
        self._stale = True
        self._standing = Standing()

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], datetime], durability: Durability = DURABLE) -> Self:
        """Open for writing, create it if need be, and repair the last line if a crash left it unfinished.

        That never loses a record: a line counts once `append` returned.

        Args:
            path: ``history.jsonl``; its directory exists.
            clock: gives aware times.
            durability: how records are made to stay.

        Raises:
            HistoryBroken: it is broken elsewhere; it is left as it is.
            OSError: it can't be opened or made to stay.
        """
        history = cls(path, durability=durability, clock=clock)
        try:
            history.resynchronise()
        except BaseException:
            history.close()
            raise
        return history

    @classmethod
    def reading(cls, path: Path) -> Self:
        """Read only, without a lock, also while it is written; one that isn't there is empty.

        Lines that are no records are passed over: `verify` tells about them.

        Raises:
            OSError: it can't be read.
        """
        history = cls(path, durability=DURABLE, clock=None)
        history._standing = records.fold(history.records())
        history._stale = False
        return history

    def close(self) -> None:
        """Close the file; harmless if it is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._stale = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, kind: str, data: Mapping[str, Any]) -> Record:
        """Add a record; when this returns it is on stable storage.

        Args:
            kind: see `Record`.
            data: JSON values; not the keys ``seq``, ``prev``, ``time``, ``kind``, ``sha256``.

        Raises:
            HistoryBroken: the file was changed by someone else, or the record can't come next.
            OSError: it could not be written or made to stay; nothing was recorded.
        """
        if self._clock is None:
            raise HistoryBroken("is open for reading only", where=str(self.path))
        if self._stale:
            self.resynchronise()
        if objection := self._standing.objection(kind, data):
            raise HistoryBroken(objection[1], where=str(self.path), hint="recovery settles it")
        line = records.encode(
            seq=self._standing.seq + 1,
            prev=self._standing.sha256,
            time=rfc3339(self._clock()),
            kind=kind,
            data=data,
        )
        self._must_be_ours()
        try:
            with about(self.path):
                _write(self._fd, line)
                self._durability.sync_data(self._fd)
                _must_hold(self._fd, line, self._size)
        except BaseException:
            # Pages that could not be written are marked clean: only bytes written anew can be synced again.
            self._stale = self._failed = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)
        record = records.decode(line)
        self._standing.apply(record)
        return record

    def resynchronise(self) -> None:
        """Take what a failed append left back and read the file anew, if that is needed.

        Raises:
            HistoryBroken: it is broken elsewhere than in an unfinished last line.
            OSError: as `open`.
        """
        if self._clock is None or not self._stale:
            return
        with about(self.path):
            self._take_back()
            self._open()
        self._stale = False

    def _take_back(self) -> None:
        if self._fd >= 0:
            if self._failed and os.fstat(self._fd).st_size > self._size:
                os.ftruncate(self._fd, self._size)
            os.close(self._fd)
            self._fd = -1
        self._failed = False

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(self.path, flags, 0o644)
        if os.fstat(self._fd).st_size == 0:  # perhaps just created, perhaps by one who died right after it
            self._durability.sync_directory_at(self.path.parent)
        self._load()
        if self._size:  # what was found may have been written by one who died before its fdatasync
            self._durability.sync_data(self._fd)

    def records(self) -> Iterator[Record]:
        """Yield the records in order; lines that are none, and an unfinished last one, are passed over."""
        for line in self._lines():
            if line.endswith(b"\n"):
                with contextlib.suppress(Malformed):
                    yield records.decode(line)

    @staticmethod
    def last_change(path: Path) -> Record | None:
        """Return the record that made live what was made live last; only the end of the file is read for it.

        Raises:
            OSError: it can't be read.
        """
        for line in _lines_backwards(path):
            with contextlib.suppress(Malformed):
                record = records.decode(line)
                if record.kind in {"commit", "recovered"}:
                    return record
        return None

    def verify(self) -> list[Finding]:
        """Check each line, its place in the chain, and that each intent has one outcome.

        Records cut off at the end leave no break: compare with ``history_seq`` and ``history_sha256`` of the
        last event in the log, and with `DeploymentFolder.announced`.
        """
        return list(records.audit(self._lines()))

    def at(self, time: datetime) -> Record | None:
        """Return the record that made live what was live at `time` (aware), or ``None`` if nothing was.

        Where the clock was set back, times overlap: then the later record is taken.
        """
        stamp = rfc3339(time)
        found: Record | None = None
        for record in self.records():
            if record.kind in {"commit", "recovered"} and record.time <= stamp:
                found = record
        return found if found is not None and found.data.get("release") is not None else None

    @property
    def seq(self) -> int:
        """Number of the last record, 0 if there is none."""
        return self._standing.seq

    @property
    def sha256(self) -> str:
        """Digest of the last record, 64 zeros if there is none."""
        return self._standing.sha256

    @property
    def committed(self) -> int:
        """Number of the last commit, 0 if there is none."""
        return self._standing.committed

    @property
    def unconcluded(self) -> Record | None:
        """The last commit, if what was to follow it did not come to its end."""
        return self._standing.unconcluded

    @property
    def live(self) -> str | None:
        """Id of the release that was made live last."""
        return self._standing.live

    @property
    def highest(self) -> int:
        """The highest sequence number of a release that the history names."""
        return self._standing.highest

    def pending_intent(self) -> Record | None:
        """Return the intent that has no outcome yet: a swap that was not concluded."""
        return self._standing.pending

    def barred(self) -> frozenset[str]:
        """Contents that going back, or a save by hand, left: only an explicit command makes them live."""
        return frozenset(self._standing.barred)

    def doubtful(self) -> frozenset[str]:
        """Ids of the releases that were on probation and never seen to do well."""
        return frozenset(self._standing.doubtful)

    def released(self) -> frozenset[str]:
        """Ids of the releases that were published or adopted, and not pruned."""
        return frozenset(self._standing.released)

    def live_order(self) -> tuple[str, ...]:
        """Ids of what was live, the live one last, without what a rollback left."""
        return tuple(self._standing.order)

    def _lines(self) -> Iterator[bytes]:
        try:
            file = _reader(self.path)
        except FileNotFoundError:
            return
        with file, about(self.path):
            # What is longer comes in pieces, of which none is a record
            yield from iter(partial(file.readline, _LONGEST_LINE_BYTES), b"")

    def _load(self) -> None:
        standing, size = Standing(), 0
        end = os.fstat(self._fd).st_size
        for number, line in enumerate(self._lines(), 1):
            whole = line.endswith(b"\n")
            try:
                record = records.decode(line)
            except Malformed as error:
                if whole and (error.json or size + len(line) < end):
                    raise self._broken(number, str(error)) from None
                os.ftruncate(self._fd, size)
                self.repaired = f"removed an unfinished last line of {len(line)} bytes"
                break
            if fault := _fault(standing, line, record):
                raise self._broken(number, fault)
            if not whole:  # torn right before its line end, or saved so by an editor
                _write(self._fd, b"\n")
                line += b"\n"  # noqa: PLW2901  # counted below
                self.repaired = "completed the last line, which lacked its line end"
            standing.apply(record)
            size += len(line)
        self._standing, self._size = standing, size

    def _broken(self, number: int, fault: str) -> HistoryBroken:
        return HistoryBroken(f"the history is broken: {fault}", where=f"{self.path}:{number}", hint=_HINT)

    def _must_be_ours(self) -> None:
        with about(self.path):
            held = os.fstat(self._fd)
        try:
            named = self.path.lstat()
        except FileNotFoundError:
            named = None
        if named is None or not os.path.samestat(held, named) or held.st_size != self._size:
            self._stale = True
            raise HistoryBroken(
                "was changed by something else while it was open",
                where=str(self.path),
                hint="nothing was recorded; recovery reads it anew",
            )


def rfc3339(time: datetime) -> str:
    """Return an aware time as RFC 3339 in UTC with microseconds and ``Z``; such texts sort as their times."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def _fault(standing: Standing, line: bytes, record: Record) -> str:
    if not records.intact(line, record):
        return f"record {record.seq} was changed, its sha256 doesn't match it"
    if record.seq != standing.seq + 1:
        return f"is record {record.seq}, record {standing.seq + 1} should stand here"
    if record.prev != standing.sha256:
        return f"record {record.seq} doesn't follow on the record before it"
    if objection := standing.objection(record.kind, record.data):
        return objection[1]
    return ""


def _reader(path: Path) -> BinaryIO:
    """Open it for reading, without following or waiting for whatever may lie there instead."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise HistoryBroken("is not a regular file", where=str(path), hint=_HINT)
    return os.fdopen(fd, "rb")


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, last first, without an unfinished last one; none if it isn't there.

    Ends at a line that is too long to be a record.
    """
    try:
        file = _reader(path)
    except FileNotFoundError:
        return
    with file:
        position = file.seek(0, os.SEEK_END)
        rest = b""
        first = True
        while position and len(rest) <= _LONGEST_LINE_BYTES:
            start = max(position - _BLOCK, 0)
            file.seek(start)
            rest, *lines = (file.read(position - start) + rest).split(b"\n")
            position = start
            if lines and first:
                del lines[-1]  # what follows the last line end: nothing, or an unfinished line
                first = False
            for line in reversed(lines):
                yield line + b"\n"
        if rest and not first and not position:
            yield rest + b"\n"


def _write(fd: int, line: bytes) -> None:
    """Write all of it: a short write goes on, so that the error which shortened it shows itself."""
    view = memoryview(line)
    while view:
        view = view[os.write(fd, view) :]


def _must_hold(fd: int, line: bytes, position: int) -> None:
    if os.pread(fd, len(line) + 1, position) != line:  # a write that reports success can be lost
        raise OSError(errno.EIO, "the file system does not hold what was written to it")
