"""Forked children that say something and wait to be told to end."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
import warnings
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable


class Child:
    """A fork of this process that does some work, tells what came of it, and lives until it is ended.

    What the work returns keeps living in the child with it; what it tells goes through `tell`.
    """

    def __init__(self, work: Callable[[Callable[[Any], None]], Any]) -> None:
        self._ours, theirs = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons: forking with threads
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._ours)
            with os.fdopen(theirs, "wb") as told:
                self._live(work, told)
        os.close(theirs)
        self._told = os.fdopen(self._ours, "rb")
        self._ended = False

    @staticmethod
    def _live(work: Callable[[Callable[[Any], None]], Any], told: Any) -> None:
        def tell(what: Any) -> None:
            pickle.dump(what, told)
            told.flush()

        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.alarm(60)
        try:
            kept = work(tell)
            while kept is not signal:
                signal.pause()
        except BaseException:  # noqa: BLE001  # this child ends here, whatever it is
            traceback.print_exc()
        os._exit(1)

    def told(self) -> Any:
        """The next thing that it tells."""
        return pickle.load(self._told)  # noqa: S301  # our own child's

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, and wait until it has ended."""
        if not self._ended:
            self._ended = True
            os.kill(self.pid, number)
            os.waitpid(self.pid, 0)
            self._told.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)
