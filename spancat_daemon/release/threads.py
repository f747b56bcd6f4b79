"""Threads that the work on releases is shared out to: begun at the first need, kept for the next."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Threads:
    """Some threads of this process; a forked child begins its own.

    To begin one takes a tenth of a millisecond of processor time, so they stay; at rest they cost none.
    """

    def __init__(self, name: str, *, at_most: int) -> None:
        """Begins none yet.

        Args:
            name: of the threads, for whoever looks at the process.
            at_most: how many there can be; what else is submitted waits for one of them.
        """
        self._name = name
        self._at_most = at_most
        self._begin_anew()
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Let one of the threads make a call; raises nothing that the call does."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._at_most, thread_name_prefix=self._name)
            return self._executor.submit(call, *args, **kwargs)
