"""Threads that the work on a release is shared out to: begun at need, kept for the next, ended at rest."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")

IDLE_S: Final = 5.0
"""How long a thread stays without work. To begin one takes a tenth of a millisecond of processor time, so
those of one release are there for the next of a trainer that saves often; a daemon at rest has none."""


class Threads:
    """Some threads of this process; a forked child begins its own.

    They don't hold up the end of the process: whoever submits a call waits for it.
    """

    def __init__(self, name: str, *, at_most: int, idle_s: float = IDLE_S) -> None:
        """Begins none yet.

        Args:
            name: what the names of the threads begin with, for whoever looks at the process.
            at_most: how many there can be; what else is submitted waits for one of them.
            idle_s: how long each waits for another call before it ends.
        """
        self._name = name
        self._at_most = at_most
        self._idle_s = idle_s
        self._begin_anew()
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = 0
        self._idle = 0

    def submit(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Let one of the threads make a call; raises nothing that the call does.

        Raises:
            OSError: there is no thread, and none can be begun.
        """
        future: Future[_T] = Future()
        with self._changed:
            self._calls.append((future, partial(call, *args, **kwargs)))
            if self._idle >= len(self._calls):
                self._changed.notify()
            elif self._threads < self._at_most:
                self._begin_one()
        return future

    def _begin_one(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._threads += 1
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more
            self._threads -= 1
            if not self._threads:
                self._calls.pop()
                raise OSError(errno.EAGAIN, str(error)) from None

    def _work(self) -> None:
        while (found := self._next()) is not None:
            future, call = found
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001  # whoever asks for the result gets it
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            del found, future, call  # and with them what they hold

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._changed:
            while not self._calls:
                self._idle += 1
                called = self._changed.wait(self._idle_s)
                self._idle -= 1
                if not called and not self._calls:
                    self._threads -= 1
                    return None
            return self._calls.popleft()
