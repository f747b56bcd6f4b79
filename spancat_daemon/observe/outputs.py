"""Where log lines go: a stream that may block or break, a file that may be full or rotated away.

Nothing here raises into the caller and nothing waits longer than a short deadline, because logging must
never stop a publish. What could not be written is counted, and told in the next line that goes through.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time
from typing import TYPE_CHECKING, Protocol, TextIO

from spancat_daemon.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

# How long a reader of the stream (a pipe, a terminal, the journal) may keep the daemon waiting, once. Until
# it has read something again, lines are dropped without waiting.
BLOCKED_DEADLINE_S = 0.25


class Output(Protocol):
    """Takes whole lines."""

    def write(self, line: bytes) -> None:
        """Writes one line, its newline included; raises OSError when not all of it got out."""
        ...

    def close(self) -> None:
        """Lets go of the descriptor; the stream it came from stays open."""
        ...


class Counted:
    """Swallows failures, counts the lines they cost and says so before the next one that gets out."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.dropped = 0
        self._reason = ""

    def write(self, line: bytes, *, confess: LossReport) -> None:
        """Writes a line, before it what was lost; never raises.

        Args:
            line: whole, with its newline.
            confess: renders the line that tells of lost ones, from their number and the reason.
        """
        before = confess(self.dropped, self._reason) if self.dropped else b""
        try:
            self.output.write(before + line)
        except (OSError, ValueError) as error:  # ValueError: a Python stream that is closed
            self.dropped += 1
            self._reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        else:
            self.dropped = 0


class LossReport(Protocol):
    """Renders the line that tells of lost ones."""

    def __call__(self, dropped: int, reason: str, /) -> bytes:
        """The line, with its newline."""
        ...


class StreamOutput:
    """Standard output or error, whatever it leads to, without ever blocking for long.

    ``O_NONBLOCK`` belongs to the open file *description*, which is shared with every process that inherited
    the stream; setting it would make their prints fail. So a socket (the journal) is written with a flag of
    the single call, and a pipe or terminal is opened anew through ``/proc/self/fd``, which makes a
    description of our own. Where that is refused, it is polled, and written in pieces of ``PIPE_BUF`` bytes:
    as much as a pipe that polls as writable takes without blocking, as long as nobody else writes to it.
    """

    def __init__(self, descriptor: int, *, deadline_s: float = BLOCKED_DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._patient = True
        self._torn = False
        self._socket: socket.socket | None = None
        self._piece_bytes = 1 << 20
        self._polled = True
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
            self._descriptor = self._socket.fileno()
        elif stat.S_ISFIFO(mode) or os.isatty(descriptor):
            self._descriptor = self._own_description(descriptor)
        else:  # a regular file or /dev/null: always ready; its offset is to stay shared
            self._descriptor = os.dup(descriptor)
            self._polled = False

    def _own_description(self, descriptor: int) -> int:
        try:
            return os.open(
                f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            )
        except OSError:  # no /proc, another user's terminal, or a pipe without a reader
            self._piece_bytes = select.PIPE_BUF
            return os.dup(descriptor)

    def write(self, line: bytes) -> None:
        """Writes the line; waits at most the deadline, and not at all once the reader was found stuck."""
        # A line cut in its middle by a failure must not run into the next one.
        whole = memoryview(b"\n" + line if self._torn else line)
        rest = whole
        deadline = time.monotonic() + (self._deadline_s if self._patient else 0.0)
        try:
            while rest:
                ready = not self._polled or self._writable(deadline)
                written = self._write_piece(rest[: self._piece_bytes]) if ready else 0
                rest = rest[written:]
                if not written and time.monotonic() >= deadline:
                    self._patient = False
                    raise TimeoutError(errno.ETIMEDOUT, "the reader of the log stream does not read")
        except OSError:
            self._torn = self._torn or len(rest) < len(whole)
            raise
        self._patient = True
        self._torn = False

    def _writable(self, deadline: float) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _write_piece(self, piece: memoryview) -> int:
        try:
            if self._socket is not None:
                return self._socket.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return os.write(self._descriptor, piece)
        except BlockingIOError:  # somebody else filled it since the poll: poll again, till the deadline
            return 0

    def close(self) -> None:
        """Closes the own descriptor only."""
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._descriptor)


class PythonStreamOutput:
    """A text stream without a descriptor, such as the one that captures a test's output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: bytes) -> None:
        """Writes and flushes."""
        self._stream.write(line.decode("utf-8", "replace"))
        self._stream.flush()

    def close(self) -> None:
        """Nothing to let go of."""


class FileOutput:
    """The log file: appended to, each line with one write, so that a rotation never splits a line."""

    def __init__(self, path: Path) -> None:
        """Opens the file, and makes it and its folder when missing.

        Raises:
            UsageError: it can't be opened, or is not a regular file.
        """
        self.path = path
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            # O_NONBLOCK: a FIFO at this place must not keep the daemon from starting. O_RDWR: to see its end.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            self.descriptor = os.open(path, flags, 0o640)
        except OSError as error:
            raise UsageError(
                f"the log file can't be opened: {error.strerror}",
                where=str(path),
                hint="give [log] file another path, or make it writable for the daemon's user",
            ) from error
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.descriptor)
            raise UsageError(
                "the log file is not a regular file", where=str(path), hint="give [log] file another path"
            )
        # A crash or a full disk can have left half a line.
        self._torn = status.st_size > 0 and os.pread(self.descriptor, 1, status.st_size - 1) != b"\n"

    def write(self, line: bytes) -> None:
        """Appends; raises OSError when not all of it got out."""
        data = b"\n" + line if self._torn else line
        written = 0
        try:
            while written < len(data):
                written += os.write(self.descriptor, data[written:])
        except OSError:
            self._torn = self._torn or written > 0
            raise
        self._torn = False

    def close(self) -> None:
        """Closes the file."""
        os.close(self.descriptor)
