"""What follows a swap: who is told of it, and whether all is well with it; in a thread of its own.

The folder's history remembers that something was to follow, so that a crash in the midst of it is made up
for by the next start: who was told already may be told again, under the same number.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spancat_daemon.after.steps import notify
from spancat_daemon.after.swap import Swap
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.health.probation import observe

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon.chronicle import Chronicle
    from spancat_daemon.config.model import Watch
    from spancat_daemon.holding import Holding
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.history import Record


@dataclass(slots=True)
class _Course:
    """One swap's follow-up under way.

    Attributes:
        undoable: whether the swap is taken back if it does not do well.
        on_probation: whether it is yet to be seen that all is well.
        ended: set when nothing more is to be begun for it.
    """

    swap: Swap
    watch: Watch
    undoable: bool
    on_probation: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class FollowUp:
    """The follow-up of one folder's swaps, in turn; a newer swap ends the probation of the older."""

    def __init__(
        self,
        folder: DeploymentFolder,
        holding: Holding,
        chronicle: Chronicle,
        *,
        go_back: Callable[[str, str], object],
        wake: Callable[[], None],
        monotonic: Callable[[], float],
    ) -> None:
        """Follows up nothing yet.

        Args:
            folder: whose swaps.
            holding: the folder, held.
            chronicle: told how it goes.
            go_back: makes an earlier release live, given the one to leave and why.
            wake: told when a probation came to its end.
            monotonic: seconds that never step.
        """
        self._folder = folder
        self._holding = holding
        self._chronicle = chronicle
        self._go_back = go_back
        self._wake = wake
        self._monotonic = monotonic
        self._stopping = threading.Event()
        self._mutex = threading.Lock()
        self._course: _Course | None = None

    @property
    def on_probation(self) -> str | None:
        """Id of the release of which it is yet to be seen that all is well with it; None if there is none."""
        course = self._course
        return course.swap.release if course is not None and course.on_probation.is_set() else None

    def resume(self, watch: Watch) -> None:
        """Take up what was to follow the last swap, if a crash or a stop cut it short."""
        record = self._holding.history.unconcluded
        if record is not None:
            self.begin(record, watch)

    def begin(self, record: Record, watch: Watch) -> None:
        """Begin what follows a swap, if anything does; returns at once.

        What brought an earlier release back is told of, but is not on probation itself.

        Args:
            record: the swap's commit.
            watch: who is to be told, and what must be well.
        """
        live = self._folder.live()
        if not record.data.get("follow_up") or live is None or live.id != record.data["release"]:
            return
        undoable = record.data.get("trigger") not in {"rollback", "recovery"}
        asked = watch.health is not None or any(after.required for after in watch.after)
        with self._mutex:
            if self._stopping.is_set():
                return
            before = self._course
            if before is not None:
                before.ended.set()
            course = _Course(Swap.of(record, live, self._folder), watch, undoable)
            if undoable and asked:
                course.on_probation.set()
            course.thread = threading.Thread(
                target=self._run, args=(course, before), name="follow-up", daemon=True
            )
            self._course = course
            course.thread.start()

    def stop(self) -> None:
        """End what is under way soon, unconcluded; nothing is begun any more."""
        self._stopping.set()
        course = self._course
        if course is not None:
            course.ended.set()

    def wait(self) -> None:
        """Return when nothing is under way; a swap that undoes another is waited for too."""
        while (course := self._course) is not None and course.thread is not threading.current_thread():
            if course.thread is not None:
                course.thread.join()
            if course is self._course:
                return

    def _run(self, course: _Course, before: _Course | None) -> None:
        if before is not None and before.thread is not None:
            before.thread.join()  # nobody is told of the newer release before the older
        try:
            reason = self._follow(course)
            if reason is not None:
                self._end(course, reason)
        finally:
            course.on_probation.clear()
            self._wake()

    def _follow(self, course: _Course) -> str | None:
        """Why the swap is to be taken back, empty if it isn't; None if it did not come to an end."""
        swap, watch = course.swap, course.watch
        for after in watch.after:
            if course.ended.is_set():
                return None
            done = notify(after, swap, stopping=self._stopping)
            if done.stopped:
                return None
            self._chronicle.notified(swap, done)
            if not done.ok and done.required:
                return f"{done.kind} {done.target} is required and failed: {done.reason}"
        health = watch.health if course.undoable else None
        if course.ended.is_set() or health is None:
            return None if course.ended.is_set() else ""
        deadline_s = self._monotonic() + health.within
        outcome, reason, checks = observe(
            health, swap, deadline_s=deadline_s, monotonic=self._monotonic, stopping=course.ended
        )
        if outcome == "stopped":
            return None
        self._chronicle.observed(swap, reason if outcome == "unwell" else "", checks)
        return f"not well within {health.within:g} s: {reason}" if outcome == "unwell" else ""

    def _end(self, course: _Course, reason: str) -> None:
        """Take the swap back for a reason; if there is none, or nothing to go back to, conclude it."""
        swap = course.swap
        if reason and course.undoable:
            try:
                self._go_back(swap.release, reason)
            except (OSError, SpancatDaemonError) as error:
                self._chronicle.stays(swap.release, reason, str(error))
            else:
                return
        try:
            with self._holding.alone:
                history = self._holding.ready()
                pending = history.unconcluded
                if pending is not None and pending.seq == swap.history_seq:
                    history.append("concluded", {"release": swap.release, "of": swap.history_seq})
        except (OSError, SpancatDaemonError) as error:
            self._chronicle.conclude_failed(swap.release, error)
