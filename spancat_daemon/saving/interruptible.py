"""Work that Ctrl-C can stop, but never cuts in two."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


class Work(Generic[_Result]):
    """Something done in a thread of its own, where no signal's handler raises anything.

    Args:
        do: the work.
        stop: makes it give up soon, by raising, if it is not done yet; called at most once.
    """

    def __init__(self, do: Callable[[], _Result], stop: Callable[[], None]) -> None:
        self._do = do
        self._stop = stop
        self._claim = threading.Lock()  # taken by who begins the work, or decides that nobody does
        self._done = threading.Event()
        self._results: list[_Result] = []
        self._error: BaseException | None = None

    def result(self) -> _Result:
        """Do it, and return what comes of it; raise what it raises.

        Whatever a signal's handler raises meanwhile, such as KeyboardInterrupt, stops the work, and is raised
        once that has stopped; what was done already by then is returned. A second one is raised at once.
        """
        begun = True
        try:
            try:
                threading.Thread(target=self._run, name="save", daemon=True).start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                begun = False
            else:
                self._done.wait()
        except BaseException:
            if self._claim.acquire(blocking=False):  # also a thread that starts takes time
                raise
            self._stop()
            self._done.wait()
            if not self._results:
                raise
        if not begun:
            return self._do()
        if self._results:
            return self._results[0]
        assert self._error is not None  # noqa: S101  # one of both
        raise self._error

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._results.append(self._do())
        except BaseException as error:  # noqa: BLE001  # raised in the thread that waits
            self._error = error
        finally:
            self._done.set()
