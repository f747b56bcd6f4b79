"""Loader processes that are kept between verifications, so that spaCy is imported once and not for each."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from spancat_daemon.release.staging import Abandoned
from spancat_daemon.verify.child import LoaderProcess, cannot_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from spancat_daemon.verify.child import Asked
    from spancat_daemon.verify.verdict import LoadVerdict

_LOOK_S: Final = 0.1  # how often one that waits for a place looks whether it is still wanted

# What spaCy and the allocator keep after a pipeline is gone stays about the same from the second on. A child
# that holds much more leaks, by a component's fault, and would sooner or later fail at its limit with a
# release that is not to blame; or it keeps what a large one needed, and then a new child is smaller. Whatever
# else gathers in it: after so many answers the start of a new one costs nothing.
_GROWTH: Final = 1.5
_GROWTH_BYTES: Final = 64 << 20
_MOST_ANSWERS: Final = 1000


@dataclass(slots=True)
class _Kept:
    """A child between two uses.

    Attributes:
        loader: the child.
        python: its interpreter.
        memory_bytes: its limit.
        held_bytes: what it held after its first answer; 0 as long as it isn't known.
        until: when it has been of no use for long enough.
    """

    loader: LoaderProcess
    python: str
    memory_bytes: int
    held_bytes: int = 0
    until: float = 0.0

    def has_grown(self) -> bool:
        """Whether a new one is better than this one, after each answer."""
        if self.loader.asked == 2:
            self.held_bytes = self.loader.held_bytes
        most = self.held_bytes * _GROWTH + _GROWTH_BYTES
        return self.loader.asked >= _MOST_ANSWERS or (self.loader.asked > 2 and self.loader.held_bytes > most)


class WarmLoaders:
    """Loaders to borrow, by any thread; a context manager that closes all.

    Args:
        at_most: how many may work at once; also how many there are at all, kept ones included.
        monotonic: clock.
    """

    def __init__(self, *, at_most: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._at_most = at_most
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._idle: list[_Kept] = []  # the one used last comes last
        self._busy = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def examine(
        self,
        asked: Asked,
        *,
        python: str,
        memory_bytes: int,
        timeout_s: float,
        idle_s: float,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> LoadVerdict:
        """Have a release examined, or a model made, by a kept loader or a new one; waits for its turn.

        A loader is ended if its verdict is not a good one. A bad verdict of a loader that had answered others
        before does not count: a new one is asked the same, so that no release pays for another.

        Args:
            asked: what is asked, see `LoaderProcess.ask`.
            python: interpreter to load with.
            memory_bytes: limit of the loader's memory.
            timeout_s: limit of the time for an answer, without waiting for its turn.
            idle_s: how long the loader is kept for others.
            abandoned: looked at ten times a second: whether the answer is no longer wanted.

        Raises:
            Abandoned: it is no longer wanted, or the loaders were closed.
        """

        def unwanted() -> bool:
            return self._closed or abandoned()

        with self._place(unwanted):
            begun = time.monotonic()
            kept = self._borrow(python, memory_bytes)
            verdict = None
            if kept is not None:
                verdict = self._ask(kept, asked, timeout_s, idle_s, unwanted)
            if verdict is None or not verdict.ok:
                try:
                    kept = _Kept(
                        LoaderProcess(python=python, memory_bytes=memory_bytes), python, memory_bytes
                    )
                except OSError as error:
                    return cannot_run(python, error, time.monotonic() - begun)
                verdict = self._ask(kept, asked, timeout_s, idle_s, unwanted)
            return replace(verdict, total_s=time.monotonic() - begun)

    def resize(self, at_most: int) -> None:
        """Change how many there may be; those at work go on."""
        with self._changed:
            self._at_most = at_most
            self._changed.notify_all()
        self._end_surplus()

    def reap(self) -> float | None:
        """End loaders that have been of no use for as long as they were to be kept.

        Returns:
            Seconds until the next one has been; None if none is kept.
        """
        now = self._monotonic()
        with self._changed:
            over = [kept for kept in self._idle if kept.until <= now]
            self._idle = [kept for kept in self._idle if kept.until > now]
            next_one = min((kept.until for kept in self._idle), default=None)
        _end(over)
        return None if next_one is None else next_one - now

    def close(self) -> None:
        """End all; those at work are given up at their next look, within a moment."""
        with self._changed:
            self._closed = True
            over, self._idle = self._idle, []
            self._changed.notify_all()
        _end(over)
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)

    @contextmanager
    def _place(self, unwanted: Callable[[], bool]) -> Iterator[None]:
        """Wait for one of the places, and hold it."""
        with self._changed:
            while self._busy >= self._at_most and not unwanted():
                self._changed.wait(_LOOK_S)
            if unwanted():
                raise Abandoned("the examination was given up")
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _borrow(self, python: str, memory_bytes: int) -> _Kept | None:
        """Return the one used last that fits and still lives; None if there is none, with room for a new."""
        found = None
        with self._changed:
            for kept in reversed(self._idle):
                if (kept.python, kept.memory_bytes) == (python, memory_bytes):
                    self._idle.remove(kept)
                    found = kept
                    break
        if found is None:
            self._end_surplus()
        return found

    def _ask(
        self,
        kept: _Kept,
        asked: Asked,
        timeout_s: float,
        idle_s: float,
        unwanted: Callable[[], bool],
    ) -> LoadVerdict:
        """Ask, and keep the loader afterwards if it is fit for others."""
        fit = False
        try:
            verdict = kept.loader.ask(asked, timeout_s=timeout_s, abandoned=unwanted)
            fit = verdict.ok and idle_s > 0
        finally:
            if not fit:
                kept.loader.close()
        if fit:
            self._keep(kept, idle_s)
        return verdict

    def _keep(self, kept: _Kept, idle_s: float) -> None:
        if kept.has_grown():
            kept.loader.close()
            return
        kept.until = self._monotonic() + idle_s
        with self._changed:
            refused = self._closed
            if not refused:
                self._idle.append(kept)
        if refused:
            kept.loader.close()

    def _end_surplus(self) -> None:
        """End the ones unused longest of those that there is no room for."""
        with self._changed:
            surplus = max(0, min(len(self._idle), self._busy + len(self._idle) - self._at_most))
            over, self._idle = self._idle[:surplus], self._idle[surplus:]
        _end(over)


def _end(over: list[_Kept]) -> None:
    for kept in over:
        kept.loader.close()
