"""SHA-256, and the proof that a file is whole, beside its copying: each file on a thread, several at once.

`hashlib` and the reads let go of the interpreter, so that two files are digested on two processors. One file
alone can't be: each block of SHA-256 needs what came of the block before.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import CancelledError
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from spancat_daemon.release.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon.checkpoint.wholeness import Proof

CHUNK_BYTES: Final = 1 << 20  # 256 KiB to 2 MiB measure alike, and each makes the threads change places twice

# More than a few at once would only take the processors from the trainer.
_THREADS: Final = Threads("digest", at_most=min(4, len(os.sched_getaffinity(0))))


class Intake:
    """What is made of a file's bytes as they pass: its SHA-256, and the proof that it is whole."""

    def __init__(self, proof: Proof | None) -> None:
        self._digest = hashlib.sha256()
        self._proof = proof

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            Rejected: the proof says that they can't belong to a whole file.
        """
        self._digest.update(chunk)
        if self._proof is not None:
            self._proof.feed(chunk)

    def finish(self) -> str:
        """Return the SHA-256 of everything fed.

        Raises:
            Rejected: the proof says that the file is not whole.
        """
        if self._proof is not None:
            self._proof.finish()
        return self._digest.hexdigest()


class Feeding:
    """A file's bytes on their way to its intake, piece by piece as they come to be there.

    Whoever begins it calls `add` for each piece, then `end`, or `give_up`.
    """

    def __init__(
        self, intake: Intake, read: Callable[[int, int], bytes], proceed: Callable[[], None]
    ) -> None:
        """Begin it, on a thread of its own.

        Args:
            intake: takes the bytes in order.
            read: given a length and a position, returns at least one byte from there on, or raises.
            proceed: called before each piece; what it raises ends it.
        """
        self._intake = intake
        self._read = read
        self._proceed = proceed
        self._pieces: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._given_up = False
        self._future = _THREADS.submit(self._feed)

    def add(self, position: int, length: int) -> None:
        """Feed these bytes too, which follow on those before.

        Raises:
            Rejected, OSError, …: what came of those before, as far as they are fed: then nothing follows.
        """
        if self._future.done():
            self._future.result()
        self._pieces.put((position, length))

    def end(self) -> None:
        """No bytes follow."""
        self._pieces.put(None)

    def result(self) -> str:
        """Return the SHA-256 of all of them, once they are fed.

        Raises:
            Rejected: the file is not whole.
            Exception: what reading, or `proceed`, raised.
        """
        return self._future.result()

    def give_up(self) -> None:
        """Return once nothing of the file is read any more, so that it can be closed."""
        self._given_up = True
        self._pieces.put(None)
        if not self._future.cancel():
            self._future.exception()

    def _feed(self) -> str:
        while (piece := self._pieces.get()) is not None:
            self._proceed()
            position, length = piece
            end = position + length
            while position < end:
                if self._given_up:
                    raise CancelledError
                chunk = self._read(min(CHUNK_BYTES, end - position), position)
                self._intake.feed(chunk)
                position += len(chunk)
        if self._given_up:
            raise CancelledError
        return self._intake.finish()
