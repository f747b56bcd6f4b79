"""A match of a glob that has no deployment folder yet: thousands of trainings may have only begun.

Nothing is made, locked or kept for it before its checkpoint is one that can be released, or somebody else
made the folder. What is looked at until then is the checkpoint alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spancat_daemon.checkpoint.settle import Unsettled, examine
from spancat_daemon.checkpoint.spool import open_checkpoint
from spancat_daemon.deploying.deployment import Result
from spancat_daemon.errors import Moved, Rejected, Vanished

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.config.expand import Target
    from spancat_daemon.deploying.deployment import Deployment
    from spancat_daemon.deploying.snapshot import Trigger


class Prospect:
    """A target's :class:`Deployment`, opened no sooner than there is something for it to do.

    All methods may be called from any thread.
    """

    __slots__ = (
        "_abandoned",
        "_deployment",
        "_glimpse",
        "_monotonic",
        "_mutex",
        "_now_ns",
        "_open",
        "_remembered",
        "min_free_bytes",
        "target",
    )

    def __init__(
        self,
        target: Target,
        *,
        min_free_bytes: int,
        remembered: Callable[[Path], bool],
        open_for: Callable[[Target, int], Deployment],
        mutex: threading.Lock,
        now_ns: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        """Opens nothing yet.

        Args:
            target: whose.
            min_free_bytes: what must stay free on its file system.
            remembered: whether a folder is known to have been there, by its path.
            open_for: makes the deployment of a target, with what must stay free.
            mutex: of the opening; all prospects can share one.
            now_ns: the wall clock that the file system stamps files with.
            monotonic: seconds that never step.
        """
        self.target = target
        self.min_free_bytes = min_free_bytes
        self._remembered = remembered
        self._open = open_for
        self._mutex = mutex
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._deployment: Deployment | None = None
        self._abandoned = False
        self._glimpse: tuple[Tree, float] | None = None  # ``writer = "any"`` compares with it

    @property
    def opened(self) -> Deployment | None:
        """The deployment, if it was opened."""
        return self._deployment

    def open(self) -> Deployment:
        """The deployment, opened now if it was not; nothing is held or made by that."""
        with self._mutex:
            if self._deployment is None:
                self._deployment = self._open(self.target, self.min_free_bytes)
                if self._abandoned:
                    self._deployment.abandon()
            return self._deployment

    def hold(self) -> None:
        """Takes the folder if there is one; raises as `Deployment.hold` does."""
        if not self._is_to_be_made():
            self.open().hold()

    def snapshot(self, trigger: Trigger, *, force: bool = False, since_s: float | None = None) -> Result:
        """As `Deployment.snapshot`; without a folder, what can't be released is left as it is."""
        if self._is_to_be_made():
            if self._abandoned:
                return Result("abandoned", None, "the deployment was given up")
            try:
                found = self._glance()
            except Vanished as error:
                return Result("vanished", None, str(error))
            except (Moved, Rejected, OSError):
                found = None  # the deployment looks again, and tells
            if found is not None:
                return found
        return self.open().snapshot(trigger, force=force, since_s=since_s)

    def _is_to_be_made(self) -> bool:
        """Whether there is no folder, and never was one as far as is known: nothing to be looked after."""
        if self._deployment is not None:
            return False
        try:
            self.target.deploy.lstat()
        except FileNotFoundError:
            return not self._remembered(self.target.deploy)
        except OSError:
            return False
        return False

    def _glance(self) -> Result | None:
        """Why the checkpoint can't be taken as it is; None: nothing that shows without copying it."""
        watch = self.target.watch
        before, since_s = self._glimpse or (None, 0.0)
        with open_checkpoint(self.target.source, writer=watch.writer) as source:
            found = examine(
                source,
                writer=watch.writer,
                settle_s=watch.settle,
                now_ns=self._now_ns,
                previous=before,
                unchanged_s=self._monotonic() - since_s if before is not None else None,
            )
        if not isinstance(found, Unsettled):
            return None
        if found.tree is None:
            self._glimpse = None
        elif found.tree != before:
            self._glimpse = (found.tree, self._monotonic())
        return Result(
            "unsettled",
            None,
            found.reason,
            retry_after_s=found.retry_after_s,
            kind=found.kind,
            tree=found.tree,
        )

    # -- as of the deployment, if it was opened --------------------------------------------------------------

    @property
    def verifying(self) -> bool:
        """As `Deployment.verifying`."""
        return self._deployment is not None and self._deployment.verifying

    @property
    def on_probation(self) -> str | None:
        """As `Deployment.on_probation`."""
        return None if self._deployment is None else self._deployment.on_probation

    def live_id(self) -> str | None:
        """As `Deployment.live_id`."""
        return None if self._is_to_be_made() else self.open().live_id()

    def retarget(self, target: Target, *, min_free_bytes: int) -> None:
        """Takes over the settings of a reloaded rule, as `Deployment.retarget` does."""
        with self._mutex:
            self.target, self.min_free_bytes, self._glimpse = target, min_free_bytes, None
            if self._deployment is not None:
                self._deployment.retarget(target, min_free_bytes=min_free_bytes)

    def reachable_at(self, control: Path) -> None:
        """As `Deployment.reachable_at`."""
        if self._deployment is not None:
            self._deployment.reachable_at(control)

    def abandon(self) -> None:
        """As `Deployment.abandon`."""
        with self._mutex:
            self._abandoned = True
            if self._deployment is not None:
                self._deployment.abandon()

    def comes_to_rest(self, timeout_s: float) -> bool:
        """As `Deployment.comes_to_rest`."""
        return self._deployment is None or self._deployment.comes_to_rest(timeout_s)

    def close(self) -> None:
        """As `Deployment.close`."""
        if self._deployment is not None:
            self._deployment.close()
