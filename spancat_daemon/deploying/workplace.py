"""What all that makes releases in a held folder works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spancat_daemon.release import rejects

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from spancat_daemon.config.expand import Target
    from spancat_daemon.deploying.chronicle import Chronicle
    from spancat_daemon.deploying.snapshot import Tools
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.history import History, Record


@dataclass(frozen=True, slots=True)
class Workplace:
    """A folder, and what belongs to it.

    Attributes:
        folder: which.
        chronicle: told what becomes of each request.
        alone: the mutex of all work on the folder.
        ready: the history of the folder, once that is held and recovered.
        target: the rule as it is now.
        min_free_bytes: what must stay free on the folder's file system, as it is now.
        on_probation: what is live as long as it is not seen to do well.
        published: sees to what follows a swap.
        tools: clocks, durability and loaders.
    """

    folder: DeploymentFolder
    chronicle: Chronicle
    alone: AbstractContextManager[object]
    ready: Callable[[], History]
    target: Callable[[], Target]
    min_free_bytes: Callable[[], int]
    on_probation: Callable[[], str | None]
    published: Callable[[Record], None]
    tools: Tools

    def make_room(self) -> bool:
        """Let all rejected snapshots go; whether there were any."""
        gone = rejects.let_go(self.folder, last=0, durability=self.tools.durability)
        if gone:
            self.chronicle.made_room(gone)
        return bool(gone)
