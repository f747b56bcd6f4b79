"""A child's three streams, read and written without ever blocking on one of them."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import subprocess

_MAX_LINE_BYTES: Final = 16 << 20  # 100,000 labels of 100 characters
_STDERR_BYTES: Final = 16 << 10


class Pipes:
    """Requests go in; lines come out, and bytes of a known number.

    Attributes:
        stderr: the end of what came on standard error.
        ended: there will be no more lines.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # noqa: S101  # all three are pipes
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        self._files = (process.stdin, process.stdout, process.stderr)
        self._numbers = tuple(file.fileno() for file in self._files)
        for number in self._numbers:
            os.set_blocking(number, False)
        self._unsent = b""
        self._received = bytearray()
        self._stderr_ended = False
        self.stderr = bytearray()
        self.ended = False

    def exchange(self, request: bytes, timeout_s: float, size: int | None = None) -> bytes | None:
        """Send what is given, after what is still to be sent, and return the next line, or the next bytes.

        Args:
            request: what is sent.
            timeout_s: seconds until it returns without.
            size: how many bytes; None: a line.

        Returns:
            None if there is none yet after that time or, with `ended`, ever. A line that is too long is
            returned as far as it has come.
        """
        deadline = time.monotonic() + timeout_s
        self._unsent += request
        stdin, stdout, stderr = self._numbers
        with selectors.DefaultSelector() as selector:
            if self._unsent:
                selector.register(stdin, selectors.EVENT_WRITE)
            selector.register(stdout, selectors.EVENT_READ)
            if not self._stderr_ended:
                selector.register(stderr, selectors.EVENT_READ)
            while (found := self._next(size)) is None and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fd == stdin:
                        self._send()
                        if not self._unsent:
                            selector.unregister(stdin)
                    elif key.fd == stderr:
                        self._listen()
                        if self._stderr_ended:
                            selector.unregister(stderr)
                    else:
                        self._receive()
                if self.ended:
                    self._listen()
                    return self._next(size)
        return found

    def close(self) -> None:
        """Close all three; what is there on standard error is taken before."""
        if not self._files[2].closed:
            self._listen()
        for file in self._files:
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _next(self, size: int | None) -> bytes | None:
        return self._line() if size is None else self._bytes(size)

    def _bytes(self, size: int) -> bytes | None:
        if len(self._received) < size:
            return None
        with memoryview(self._received) as received:
            found = bytes(received[:size])
        del self._received[:size]
        return found

    def _line(self) -> bytes | None:
        end = self._received.find(b"\n")
        if end < 0:
            if len(self._received) <= _MAX_LINE_BYTES:
                return None
            end = len(self._received)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._numbers[0], self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._unsent = b""  # it is ending; its other streams tell how

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._numbers[1], 1 << 16)
            self._received += chunk
            self.ended = not chunk

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._numbers[2], 1 << 16)
            self.stderr += chunk
            del self.stderr[:-_STDERR_BYTES]
            self._stderr_ended = not chunk
