"""Getting the memory of models back that were let go."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Final

from spancat_daemon.serving.forks import locks

if TYPE_CHECKING:
    from spancat_daemon.serving.served import Served

_LONGEST_DELAY_S: Final = 32.0


class Litter:
    """Models that were let go. Parts of them refer to each other, so it takes the collector to free all.

    A caller's frame may hold one for a moment longer: then it is tried again after 1, 2, 4 … 32 s, and not
    for ever, for each try stops the whole process for its time (some 0.1 s).
    """

    def __init__(self) -> None:
        self._models: list[Served] = []
        self._delay_s = 0.0
        self._due = 0.0

    def add(self, served: Served) -> None:
        """Take what was let go; `locks.state` is held."""
        self._models.append(served)
        self._delay_s = self._due = 0.0

    def collect(self) -> None:
        """Collect what is due; called every second or so."""
        with locks.state:
            if not self._models or time.monotonic() < self._due:
                return
            self._delay_s = max(1.0, 2 * self._delay_s)
            self._due = time.monotonic() + self._delay_s
            if self._delay_s > _LONGEST_DELAY_S:
                self._models.clear()
                return
        gc.collect()
        with locks.state:
            self._models = [served for served in self._models if served.fading]
