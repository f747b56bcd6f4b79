"""What a HotModel tells, to be waited for."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spancat_daemon.errors import SpancatDaemonError
    from spancat_daemon.release.survey import Release

PATIENCE_S = 120.0


class Told:
    """The callbacks of a HotModel; each swap and each error is taken once."""

    def __init__(self) -> None:
        self.swaps: queue.SimpleQueue[tuple[Release, Release | None]] = queue.SimpleQueue()
        self.errors: queue.SimpleQueue[SpancatDaemonError] = queue.SimpleQueue()

    @property
    def callbacks(self) -> dict[str, Any]:
        return {"on_swap": lambda new, old: self.swaps.put((new, old)), "on_error": self.errors.put}

    def swap(self) -> tuple[str, str | None]:
        """Ids of the next release that took over, and of the one before it."""
        new, old = self.swaps.get(timeout=PATIENCE_S)
        return new.id, old.id if old is not None else None

    def error(self) -> str:
        """The next error."""
        return str(self.errors.get(timeout=PATIENCE_S))
