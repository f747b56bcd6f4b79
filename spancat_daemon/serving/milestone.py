"""Something that happens once, for threads and coroutines that wait for it."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from spancat_daemon.serving.forks import locks

if TYPE_CHECKING:
    from collections.abc import Callable


class Milestone:
    """Not reached yet. Whoever gives up waiting for it leaves nothing behind, however often they come."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._waiting: set[Callable[[], None]] = set()

    def reach(self) -> None:
        """Let all go on who wait for it, and who ever will; harmless if it was reached before."""
        with locks.state:
            self._reached.set()
            waiting, self._waiting = self._waiting, set()
        for tell in waiting:
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                tell()

    def wait(self, patience_s: float | None) -> bool:
        """Block until it is reached, for so long at most (None: for ever); says whether it is."""
        return self._reached.wait(patience_s)

    async def reached(self, patience_s: float | None) -> bool:
        """Do `wait` without blocking the event loop."""
        import asyncio  # noqa: PLC0415  # whoever awaits has it, others do without

        told, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(told.set)

        with locks.state:
            if self._reached.is_set():
                return True
            self._waiting.add(tell)
        try:
            async with asyncio.timeout(patience_s):
                await told.wait()
        except TimeoutError:
            pass
        finally:
            with locks.state:
                self._waiting.discard(tell)
        return self._reached.is_set()
