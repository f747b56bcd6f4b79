"""What follows a swap: who is told of it, and whether all is well with it; in a thread of its own.

The folder's history remembers that something was to follow, so that a crash in the midst of it is made up
for by the next start: who was told already may be told again, under the same number.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spancat_daemon.after.swap import Swap
from spancat_daemon.errors import SpancatDaemonError, UsageError
from spancat_daemon.release.staging import Abandoned

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon.config.model import Watch
    from spancat_daemon.deploying.chronicle import Chronicle
    from spancat_daemon.deploying.holding import Holding
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.history import Record


@dataclass(slots=True)
class _Course:
    """One swap's follow-up.

    Attributes:
        sha256: of the swap's commit, which no other has.
        undoable: whether the swap is taken back if it does not do well.
        on_probation: whether it is yet to be seen that all is well.
        ended: set when nothing more is to be begun for it.
        disturbed: set when a health check under way is of no use any more.
        outcome: why the swap is to be taken back, empty if it isn't; None as long as that isn't known.
        told: whether somebody was told that it could not be taken back.
        under_way: whether somebody sees to it now.
        thread: who does, or did last; None if none could be started.
    """

    swap: Swap
    sha256: str
    watch: Watch
    undoable: bool
    on_probation: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    disturbed: threading.Event = field(default_factory=threading.Event)
    outcome: str | None = None
    told: bool = False
    under_way: bool = False
    thread: threading.Thread | None = None

    def end(self) -> None:
        """Begin nothing more for it."""
        self.ended.set()
        self.disturbed.set()

    def apply(self, watch: Watch) -> None:
        """Follow up as a rule says, from the next health check on."""
        self.watch = watch
        asked = watch.health is not None or any(after.required for after in watch.after)
        if asked and self.undoable:
            self.on_probation.set()
        self.disturbed.set()


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
        if course is None or course.ended.is_set() or not course.on_probation.is_set():
            return None
        return course.swap.release

    def resume(self, watch: Watch) -> None:
        """Take up what was to follow the last swap, if something cut it short; `Holding.alone` is held.

        That is a crash, a stop, a commit that only recovery could make, or a failure to record the end.
        """
        record = self._holding.history.unconcluded
        if record is None:
            return
        course = self._course
        if course is None or course.sha256 != record.sha256:
            self.begin(record, watch)
            return
        with self._mutex:
            if not course.ended.is_set() and not course.under_way:
                self._start(course, None)

    def begin(self, record: Record, watch: Watch) -> None:
        """Begin what follows a swap, if anything does; returns at once and never raises.

        What brought an earlier release back is told of, but is not on probation itself.

        Args:
            record: the swap's commit.
            watch: who is to be told, and what must be well.
        """
        with self._mutex:
            before = self._course
            if before is not None:
                before.end()
            if not record.data.get("follow_up"):
                return
            try:
                live = self._folder.live()
            except (OSError, SpancatDaemonError) as error:
                self._chronicle.conclude_failed(record.data["release"], error)
                return
            if live is None or live.id != record.data["release"]:
                return
            course = _Course(
                Swap.of(record, live, self._folder),
                record.sha256,
                watch,
                undoable=record.data.get("trigger") not in {"rollback", "recovery"},
            )
            course.apply(watch)
            self._start(course, before)

    def retarget(self, watch: Watch) -> None:
        """Hold what is on probation to the rule as it is now."""
        with self._mutex:
            if self._course is not None and self._course.under_way:
                self._course.apply(watch)

    def stop(self) -> None:
        """End what is under way soon, unconcluded; nothing is begun any more."""
        with self._mutex:
            self._stopping.set()
            if self._course is not None:
                self._course.end()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return when nothing is under way; a swap that undoes another is waited for too.

        Args:
            timeout_s: wait no longer than that.

        Returns:
            Whether nothing is.
        """
        until_s = None if timeout_s is None else self._monotonic() + timeout_s
        while (course := self._course) is not None:
            thread = course.thread
            if thread is None or thread is threading.current_thread():
                return True
            thread.join(None if until_s is None else max(until_s - self._monotonic(), 0.0))
            if thread.is_alive():
                return False
            if course is self._course and course.thread is thread:
                return True
        return True

    def _start(self, course: _Course, before: _Course | None) -> None:
        """Give a course its thread; the mutex is held."""
        if self._stopping.is_set():
            return
        thread = threading.Thread(target=self._run, args=(course, before), name="follow-up", daemon=True)
        self._course, course.thread, course.under_way = course, thread, True
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more threads
            course.thread, course.under_way = None, False
            course.on_probation.clear()
            self._chronicle.conclude_failed(course.swap.release, error)

    def _run(self, course: _Course, before: _Course | None) -> None:
        if before is not None and before.thread is not None:
            before.thread.join()  # nobody is told of the newer release before the older
        try:
            if course.outcome is None:
                course.outcome = self._follow(course)
            if course.outcome is not None:
                self._end(course, course.outcome)
        except (OSError, SpancatDaemonError) as error:
            self._chronicle.conclude_failed(course.swap.release, error)
        except Exception as error:  # noqa: BLE001  # a defect; it would only be met again before the next start
            course.ended.set()
            self._chronicle.conclude_failed(course.swap.release, error)
        finally:
            with self._mutex:
                course.under_way = False
                course.on_probation.clear()
            self._wake()

    def _follow(self, course: _Course) -> str | None:
        """Why the swap is to be taken back, empty if it isn't; None if it did not come to an end."""
        # For the few rules that tell anybody of a swap, or ask after it
        from spancat_daemon.after.steps import notify  # noqa: PLC0415
        from spancat_daemon.health.probation import observe  # noqa: PLC0415

        for after in course.watch.after:
            if course.ended.is_set():
                return None
            done = notify(after, course.swap, stopping=self._stopping)
            if done.stopped:
                return None
            self._chronicle.notified(course.swap, done)
            if not done.ok and done.required:
                return f"{done.kind} {done.target} is required and failed: {done.reason}"
        while True:
            course.disturbed.clear()
            health = course.watch.health if course.undoable else None
            if course.ended.is_set() or health is None:
                return None if course.ended.is_set() else ""
            deadline_s = self._monotonic() + health.within
            outcome, reason, checks = observe(
                health,
                course.swap,
                deadline_s=deadline_s,
                monotonic=self._monotonic,
                stopping=course.disturbed,
            )
            if outcome == "stopped":
                continue  # it has ended, or the rule was changed
            if not self._is_last(course):
                return None
            self._chronicle.observed(course.swap, reason if outcome == "unwell" else "", checks)
            return f"not well within {health.within:g} s: {reason}" if outcome == "unwell" else ""

    def _is_last(self, course: _Course) -> bool:
        """Whether nothing else was made live since, by whomever: then the verdict is not about this swap."""
        with self._holding.alone:
            pending = self._holding.ready().unconcluded
            return pending is not None and pending.sha256 == course.sha256

    def _end(self, course: _Course, reason: str) -> None:
        """Take the swap back for a reason; if there is none, or nothing to go back to, conclude it."""
        swap = course.swap
        with self._holding.alone:
            if not self._is_last(course):
                return
            end = {"release": swap.release, "of": swap.history_seq}
            if reason and course.undoable:
                try:
                    self._go_back(swap.release, reason)
                except Abandoned:
                    return
                except (OSError, SpancatDaemonError) as error:
                    if not course.told:
                        self._chronicle.stays(swap.release, reason, str(error))
                        course.told = True
                    if not isinstance(error, UsageError):
                        return  # there may be something to go back to: `resume` tries again
                    end["unwell"] = True
                else:
                    return
            self._holding.history.append("concluded", end)
