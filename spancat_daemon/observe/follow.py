"""Reading a log file of JSON lines from its end, and on and on through its rotations."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BLOCK_BYTES: Final = 64 << 10
# A line that is longer is handed out in parts: what has no line ends is no log.
_LONGEST_LINE_BYTES: Final = 1 << 20


def lines_backward(descriptor: int, end: int) -> Iterator[bytes]:
    """The lines before an offset, the last one first, without their newlines; empty ones left out."""
    rest = b""
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        block = os.pread(descriptor, end - start, start)
        if not block:  # truncated meanwhile
            return
        rest, *whole = (block + rest).split(b"\n")
        end = start
        if len(rest) > _LONGEST_LINE_BYTES:
            whole.insert(0, rest)
            rest = b""
        yield from (line for line in reversed(whole) if line)
    if rest:
        yield rest


@dataclass(slots=True)
class _Reading:
    """An open log file and how far it is read."""

    descriptor: int
    offset: int = 0

    def status(self) -> os.stat_result:
        return os.fstat(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


class LogFollower:
    """Hands out the lines of a log file as they are written, whatever logrotate does to the file meanwhile.

    No line is lost or seen twice over a rename (the old file is read until the new one holds something,
    because the writer goes on with the old one until it is told) and over a deletion with later creation.
    Of a file that is truncated in place (``copytruncate``) the lines written since the last ``poll`` are
    lost, as that method itself loses some. Not for several threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading: _Reading | None = None
        self._rest = b""

    def start_at_end(self) -> Iterator[bytes]:
        """Begins after the last whole line; returns the lines before it, the last one first.

        Nothing where there is no file yet. Use up the iterator before the first ``poll``.

        Raises:
            OSError: the file is there but can't be read.
        """
        self._reading = self._opened()
        if self._reading is None:
            return iter(())
        self._reading.offset = _end_of_lines(self._reading)
        return lines_backward(self._reading.descriptor, self._reading.offset)

    def poll(self) -> list[bytes]:
        """All whole lines written since the last call, without newlines; never waits.

        Raises:
            OSError: the file is there but can't be read.
        """
        if self._reading is None:
            self._reading = self._opened()
            if self._reading is None:
                return []
        lines = self._read(self._reading)
        while (successor := self._successor(self._reading)) is not None:
            # Its successor holds a line, so the old file gets no more: read what came to it till then.
            lines += self._read(self._reading) + self._unfinished()
            self._reading.close()
            self._reading = successor
            lines += self._read(successor)
        return lines

    def unfinished(self) -> list[bytes]:
        """What stands after the last whole line: a line being written, or one that a crash has torn."""
        if self._reading is None:
            return []
        rest = os.pread(self._reading.descriptor, _LONGEST_LINE_BYTES, self._reading.offset)
        return [rest] if rest else []

    def close(self) -> None:
        """Closes the file."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _opened(self) -> _Reading | None:
        try:
            # Non-blocking: with a FIFO at this place nothing could stop the command but a signal.
            return _Reading(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except FileNotFoundError:
            return None

    def _successor(self, reading: _Reading) -> _Reading | None:
        """The file that has come in the place of the one that is read, once it holds something."""
        try:
            if os.path.samestat(self._path.stat(), reading.status()):
                return None
        except FileNotFoundError:
            return None
        successor = self._opened()
        if successor is None:
            return None
        status = successor.status()
        if status.st_size > 0 and not os.path.samestat(status, reading.status()):
            return successor
        successor.close()
        return None

    def _read(self, reading: _Reading) -> list[bytes]:
        if reading.status().st_size < reading.offset:
            reading.offset = 0
            self._rest = b""
        lines: list[bytes] = []
        while block := os.pread(reading.descriptor, _BLOCK_BYTES, reading.offset):
            reading.offset += len(block)
            *whole, self._rest = (self._rest + block).split(b"\n")
            lines += (line for line in whole if line)
            if len(self._rest) > _LONGEST_LINE_BYTES:
                lines += self._unfinished()
        return lines

    def _unfinished(self) -> list[bytes]:
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def _end_of_lines(reading: _Reading) -> int:
    end = reading.status().st_size
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        newline = os.pread(reading.descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
