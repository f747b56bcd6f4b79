"""Whether something was mounted or unmounted: of what lies below, no file event tells."""

from __future__ import annotations

import contextlib
import os
import select
from typing import Final

_TABLE: Final = "/proc/self/mountinfo"


class Mounts:
    """The table of mounts of this process, which the kernel marks when it changes; see proc(5)."""

    def __init__(self) -> None:
        """Opens the table; where there is none, nothing ever changes."""
        self._fd = -1
        self._poll = select.poll()
        with contextlib.suppress(OSError):
            self._fd = os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._fd, select.POLLPRI)

    def changed(self) -> bool:
        """Whether it did since this was last asked, or since the start."""
        return bool(self._fd >= 0 and self._poll.poll(0))

    def close(self) -> None:
        """Gives the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
