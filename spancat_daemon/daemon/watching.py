"""What asks for snapshots by itself: changes on disk, trainers that say what they wrote, and schedules.

File events and schedules come from threads of their own and only leave a mark; what the marks mean is decided
in the service's thread, by looking.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from spancat_daemon.checkpoint.spool import watched_path
from spancat_daemon.config.expand import glob_root
from spancat_daemon.config.patterns import wildcards
from spancat_daemon.daemon.overdue import LastRuns
from spancat_daemon.daemon.tidings import Tidings
from spancat_daemon.triggers.filesystem import FilesystemTrigger, Watched
from spancat_daemon.triggers.schedule import Job, ScheduleTrigger
from spancat_daemon.triggers.signal import SIGNAL_NAME, Signals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from spancat_daemon.config.expand import Target
    from spancat_daemon.config.model import Configuration
    from spancat_daemon.deploying.snapshot import Trigger
    from spancat_daemon.observe.logs import Logger

STALE_AFTER_S: Final = 25.0
"""A canary or scheduler tick older than this means that triggers are dead: the service watchdog starves."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for since the last time.

    Attributes:
        matches: whether those of a glob may have come or gone.
        changed: rules whose checkpoint may have changed.
        due: rules whose schedule is due, and whether it forces.
    """

    matches: bool
    changed: tuple[str, ...]
    due: tuple[tuple[str, bool], ...]


class Lookout:
    """The triggers of all rules; but for `stale`, of the service's thread alone.

    Args:
        wake: makes the service ask what was `asked`; called from any thread.
        log: where triggers tell what happens to them.
        state_dir: where the canary and the times of schedules are kept.
    """

    def __init__(self, *, wake: Callable[[], None], log: Logger, state_dir: Path) -> None:
        self._wake = wake
        self._log = log
        self._mutex = threading.Lock()
        self._dirty: set[str] = set()
        self._due: dict[str, bool] = {}
        self._globs: set[str] = set()
        self._targets: dict[str, Target] = {}
        self.tidings = Tidings(log)
        self._filesystem = FilesystemTrigger(
            on_dirty=self._mark_dirty, on_event=self.tidings.watch, canary_path=state_dir / "canary"
        )
        self.schedule = ScheduleTrigger(on_due=self._mark_due, on_event=self.tidings.schedule)
        self._signals = Signals(self.tidings.signal_ignored)
        self._last_runs = LastRuns(state_dir / "schedules.json")

    def start(self, ending: ExitStack) -> None:
        """Starts the threads of the triggers; `ending` stops them."""
        self._filesystem.start()
        ending.callback(self._filesystem.stop)
        self.schedule.start()
        ending.callback(self.schedule.stop)

    def follow(self, configuration: Configuration, wanted: Sequence[Target]) -> None:
        """Looks out for these targets, and for the matches of a configuration's globs; the new first."""
        globs = _globs(configuration)
        attended = [target for target in wanted if target.watch.on_change]
        self._globs = {glob.key for glob in globs}
        self._targets = {target.rule: target for target in wanted}
        self._signals.attend({target.rule: target.source for target in attended if not _is_spool(target)})
        self._filesystem.set_watched(globs + [_watched(target) for target in attended])
        self.schedule.set_jobs(_jobs(wanted))

    def asked(self) -> Asked:
        """What the triggers have marked since this was last called."""
        with self._mutex:
            dirty, self._dirty = self._dirty, set()
            due, self._due = self._due, {}
        now = datetime.now(UTC)
        for key, force in due.items():
            self._last_runs.mark(key, now, force=force)
        return Asked(bool(dirty & self._globs), tuple(sorted(dirty - self._globs)), tuple(due.items()))

    def trigger(self, rule: str) -> Trigger:
        """Why a rule's checkpoint, which may have changed, is looked at: a trainer's word, if there is one.

        An entry of a spool is one by itself, since it is renamed in when it is whole.
        """
        target = self._targets.get(rule)
        if target is not None and _is_spool(target):
            return "signal"
        return "signal" if self._signals.given(rule) else "change"

    def ask_overdue(self) -> None:
        """Asks for what was due while no daemon ran; one run stands for all that a rule missed."""
        now = datetime.now(UTC)
        for job, due in self._last_runs.overdue(_jobs(list(self._targets.values())), now):
            self._log.warning(
                "schedule.missed",
                rule=job.key,
                scheduled_for=due.isoformat(),
                late_s=round((now - due).total_seconds(), 3),
                reason="no daemon ran then; it runs now",
            )
            self._mark_due(job.key, job.schedule.force)

    def check(self) -> None:
        """Finds the faults that no event tells of; to be called every few seconds."""
        self._filesystem.check()
        self.schedule.check_clock()

    def touch_canary(self) -> None:
        """Makes the file events prove that they come through."""
        self._filesystem.touch_canary()

    def stale(self) -> str:
        """Which trigger shows no sign of life; empty if all do. Any thread may ask."""
        if self._filesystem.canary_age_s() > STALE_AFTER_S:
            return "no file event has come through for too long"
        if self.schedule.tick_age_s() > STALE_AFTER_S:
            return "the scheduler has stopped ticking"
        return ""

    def _mark_dirty(self, key: str) -> None:
        with self._mutex:
            self._dirty.add(key)
        self._wake()

    def _mark_due(self, key: str, force: bool) -> None:
        with self._mutex:
            self._due[key] = self._due.get(key, False) or force
        self._wake()


def _globs(configuration: Configuration) -> list[Watched]:
    """What comes and goes of the matches of each glob."""
    return [
        Watched(
            key=watch.name,  # its matches' keys hold a "/", so none is the same, whatever they are called
            path=glob_root(watch.source),
            pattern=watch.source,
            poll_s=watch.poll,
            contents=False,
        )
        for watch in configuration.watch
        if wildcards(watch.source)
    ]


def _watched(target: Target) -> Watched:
    watch = target.watch
    return Watched(
        key=target.rule,
        path=watched_path(target.source, writer=watch.writer),
        poll_s=watch.poll,
        beside=frozenset() if _is_spool(target) else frozenset({SIGNAL_NAME}),
    )


def _is_spool(target: Target) -> bool:
    return target.watch.writer == "spool"


def _jobs(wanted: Sequence[Target]) -> list[Job]:
    """Each target's schedules."""
    return [Job(target.rule, schedule) for target in wanted for schedule in target.watch.schedule]
