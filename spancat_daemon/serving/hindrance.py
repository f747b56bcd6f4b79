"""What keeps a release from being read but says nothing of it, and when to try it again."""

from __future__ import annotations

import errno
import math
import time
from typing import Final

from spancat_daemon.errors import SpancatDaemonError

_LACKS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_SHORTEST_DELAY_S: Final = 1.0
_LONGEST_DELAY_S: Final = 64.0


class Hindered(SpancatDaemonError):  # noqa: N818  # a state of the machine
    """A release could not be read for what may pass: no memory, no descriptor, no permission, a bad disk."""


def lacks(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is that the process has no memory or descriptor left."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in _LACKS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class Retry:
    """When to try again what was hindered: after 1, 2, 4 … 64 s; never, as long as nothing was."""

    def __init__(self) -> None:
        self._delay_s = 0.0
        self._due_s = math.inf

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._due_s

    def put_off(self) -> None:
        """Say that it was hindered, for the first time or once more."""
        self._delay_s = min(max(_SHORTEST_DELAY_S, 2 * self._delay_s), _LONGEST_DELAY_S)
        self._due_s = time.monotonic() + self._delay_s
