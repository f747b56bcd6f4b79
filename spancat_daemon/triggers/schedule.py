"""Tells which rules are due by the clock."""

# mypy: disable-error-code="no-untyped-call"
# (APScheduler 3 has no annotations.)

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    JobExecutionEvent,
)
from apscheduler.executors.base import BaseExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spancat_daemon.config.model import CronSchedule, IntervalSchedule

logger = logging.getLogger(__name__)

TICK_S = 5.0
"""How often the scheduler proves that it lives; also how late it is after the wall clock jumped ahead."""
CLOCK_STEP_S = 5.0
"""Wall and monotonic clock may part by this much between two looks before jobs are scheduled anew."""
LATE_S = 60.0
"""A run this long after its time is said to have been missed (it runs all the same)."""

_TICK = "tick"
_FIRST_RESTART_S = 1.0
_LONGEST_RESTART_S = 300.0


class Clock:
    """The time as the scheduler sees it; tests have their own."""

    def now(self) -> datetime:
        """Wall clock, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Job:
    """One line of a rule's `schedule`. A key can have several."""

    key: str
    schedule: CronSchedule | IntervalSchedule


@dataclass(frozen=True, slots=True)
class ScheduleEvent:
    """Something to log. `key` is None where it concerns all of them."""

    event: Literal["schedule.missed"]
    key: str | None
    fields: Mapping[str, Any]


class IntervalOnMonotonicTime(BaseTrigger):
    """Due every so many seconds of monotonic time, whatever the wall clock does meanwhile."""

    __slots__ = ("_clock", "_due", "_every_s")

    def __init__(self, every_s: float, clock: Clock) -> None:
        self._every_s = every_s
        self._clock = clock
        self._due = clock.monotonic() + every_s

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """The wall time of the next due moment, as the wall clock stands now."""
        monotonic = self._clock.monotonic()
        if previous_fire_time is not None and self._due - monotonic < self._every_s / 2:
            # It ran now. By the wall clock it can be due a moment before its time, hence the half interval.
            # The grid stays; what fell into a time in which nothing ran is one run, not many.
            self._due += self._every_s * (1 + max(monotonic - self._due, 0) // self._every_s)
        return now + timedelta(seconds=self._due - monotonic)


class _Deferring(BaseExecutor):
    """Keeps due jobs until the scheduler has let go of its locks, then runs them in its own thread.

    All that jobs do is to set flags, so they need no threads; but whoever is told can hold locks with which
    it asks for the next run. Unlike APScheduler's own executors it logs nothing at each tick.
    """

    def __init__(self) -> None:
        super().__init__()
        self._due: list[tuple[Any, datetime]] = []

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        self._due.append((job, run_times[-1]))

    def run_due(self) -> None:
        """Runs what was submitted; what a job raises becomes an event."""
        due, self._due = self._due, []
        for job, when in due:
            events = []
            try:
                job.func(*job.args, when)
            except Exception as error:
                logger.exception("a schedule's job failed")
                events = [JobExecutionEvent(EVENT_JOB_ERROR, job.id, "default", when, exception=error)]
            self._run_job_success(job.id, events)


class _Scheduler(BackgroundScheduler):
    """Looks at the clock before it looks for due jobs, so that a step is never taken for time gone by.

    Args:
        follow_clock: called before each look.
    """

    def __init__(self, follow_clock: Callable[[], None]) -> None:
        self._follow_clock = follow_clock
        self._deferring = _Deferring()
        super().__init__(
            timezone=UTC,
            daemon=True,
            jobstores={"default": MemoryJobStore()},
            executors={"default": self._deferring},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def _process_jobs(self) -> float | None:
        try:
            self._follow_clock()
            wait_s: float | None = super()._process_jobs()
            self._deferring.run_due()
        except Exception:  # would end the thread; if it goes on, the tick stays out and check_clock() acts
            logger.exception("the scheduler failed")
            return TICK_S
        return wait_s


@dataclass(slots=True)
class _Entry:
    job: Job
    trigger: BaseTrigger


class ScheduleTrigger:
    """Calls `on_due(key, force)` when a schedule of the key is due.

    * A run that is late, because the machine slept or was busy, happens once as soon as it can; one that is
      more than a minute late is also reported as `schedule.missed`.
    * `every` counts seconds of monotonic time from `set_jobs`: steps of the wall clock move nothing. Time
      in which the machine was suspended does not count.
    * `cron` is the wall clock's in the schedule's time zone. A clock that is set back makes the times
      between come again, and they run again; one that is set ahead makes those that were skipped run once.
    * Daylight saving, in zones that have it (the default, UTC, has not): a time that comes twice in autumn
      runs twice; a time that does not exist in spring runs at the moment it would have been without the
      change, so 02:30 runs at 03:30. A wildcard hour runs each hour that passes.

    One thread. `on_due` and `on_event` are called from it (and `on_event` from the caller of `check_clock`),
    without any lock held, and must be quick. All methods can be called from any thread.

    Args:
        on_due: sets a flag.
        on_event: what is to be logged.
        clock: the time.
    """

    def __init__(
        self,
        *,
        on_due: Callable[[str, bool], None],
        on_event: Callable[[ScheduleEvent], None],
        clock: Clock | None = None,
    ) -> None:
        self._on_due = on_due
        self._on_event = on_event
        self._clock = clock or Clock()
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        self._scheduler: _Scheduler | None = None
        self._ticked = self._clock.monotonic()
        self._offset = self._measure()
        self._restart_at = 0.0
        self._restart_delay_s = _FIRST_RESTART_S

    def start(self) -> None:
        """Starts the scheduler's thread. Does nothing if it runs."""
        with self._lock:
            if self._scheduler is None:
                self._offset = self._measure()
                self._begin({})

    def stop(self) -> None:
        """Ends the thread; nothing is due after it returned."""
        with self._lock:
            scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            _end(scheduler)

    def set_jobs(self, jobs: Sequence[Job]) -> None:
        """These and no others from now on. A job that was there before keeps its time."""
        wanted: dict[str, Job] = {}
        for job in jobs:
            base = f"{job.key} {job.schedule!r}"
            name, number = base, 1
            while name in wanted:
                name, number = f"{base} {number}", number + 1
            wanted[name] = job
        with self._lock:
            for name, job in wanted.items():
                if name not in self._entries:
                    self._entries[name] = _Entry(job, self._trigger(job.schedule))
                    if self._scheduler is not None:
                        self._add(self._scheduler, name, None)
            for name in self._entries.keys() - wanted.keys():
                del self._entries[name]
                if self._scheduler is not None:
                    self._scheduler.remove_job(name)

    def next_run(self, key: str) -> datetime | None:
        """When the key is due next, in its schedule's time zone; None without a schedule, or never again."""
        with self._lock:
            if self._scheduler is None:
                return None
            times = [
                job.next_run_time
                for name, entry in self._entries.items()
                if entry.job.key == key and (job := self._scheduler.get_job(name)) is not None
            ]
            return min((when for when in times if when is not None), default=None)

    def tick_age_s(self) -> float:
        """Seconds since the scheduler's thread last ran a job of its own, which it does every `TICK_S`."""
        return self._clock.monotonic() - self._ticked

    def check_clock(self) -> None:
        """To be called every few seconds: follows steps of the wall clock, and revives a dead scheduler."""
        with self._lock:
            if self._scheduler is None:
                return
            self._follow_clock()
            thread = self._scheduler._thread  # noqa: SLF001  # its `running` stays true when the thread died
            alive = thread is not None and thread.is_alive()
            if alive and self.tick_age_s() <= 4 * TICK_S:
                return
            now = self._clock.monotonic()
            if now < self._restart_at:
                return
            self._restart_at = now + self._restart_delay_s
            self._restart_delay_s = min(self._restart_delay_s * 2, _LONGEST_RESTART_S)
            dead, self._scheduler = self._scheduler, None
            due = {name: job.next_run_time for name in self._entries if (job := _job(dead, name)) is not None}
            _end(dead, wait=False)
            self._begin(due)
        self._say(
            None, reason="the scheduler hung" if alive else "the scheduler died", hint="it is started anew"
        )

    # -- scheduler thread --

    def _tick(self, _when: datetime | None = None) -> None:
        self._ticked = self._clock.monotonic()
        self._restart_delay_s = _FIRST_RESTART_S

    def _run(self, key: str, force: bool, when: datetime | None = None) -> None:
        late_s = (self._clock.now() - when).total_seconds() if when is not None else 0.0
        if when is not None and late_s > LATE_S:
            self._say(
                key, scheduled_for=when.isoformat(), late_s=round(late_s, 3), reason="late; it runs now"
            )
        self._on_due(key, force)

    def _on_scheduler_event(self, event: Any) -> None:
        entry = self._entries.get(event.job_id)  # no lock: the scheduler can hold its own here
        reason = {EVENT_JOB_ERROR: "failed", EVENT_JOB_MISSED: "missed"}.get(event.code, "still running")
        self._say(entry.job.key if entry else None, reason=reason, error=str(getattr(event, "exception", "")))

    def _say(self, key: str | None, **fields: Any) -> None:
        try:
            self._on_event(ScheduleEvent("schedule.missed", key, MappingProxyType(fields)))
        except Exception:  # logging must not end the scheduler
            logger.exception("on_event failed")

    # -- with the lock held --

    def _begin(self, due: Mapping[str, datetime | None]) -> None:
        scheduler = _Scheduler(self._follow_clock)
        scheduler.add_listener(
            self._on_scheduler_event, EVENT_JOB_ERROR | EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES
        )
        self._ticked = self._clock.monotonic()
        self._scheduler = scheduler
        scheduler.add_job(
            self._tick,
            IntervalOnMonotonicTime(TICK_S, self._clock),
            id=_TICK,
            next_run_time=self._clock.now(),
        )
        for name in self._entries:
            self._add(scheduler, name, due.get(name))
        scheduler.start()

    def _add(self, scheduler: _Scheduler, name: str, due: datetime | None) -> None:
        entry = self._entries[name]
        scheduler.add_job(
            self._run,
            entry.trigger,
            args=(entry.job.key, entry.job.schedule.force),
            id=name,
            next_run_time=due or entry.trigger.get_next_fire_time(None, self._clock.now()),
        )

    def _trigger(self, schedule: CronSchedule | IntervalSchedule) -> BaseTrigger:
        every: float | None = getattr(schedule, "every", None)
        if every is not None:
            return IntervalOnMonotonicTime(every, self._clock)
        return cron_trigger(cast("CronSchedule", schedule))

    def _measure(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()

    def _follow_clock(self) -> None:
        with self._lock:
            scheduler = self._scheduler
            if scheduler is None:
                return
            offset = self._measure()
            step_s = offset - self._offset
            self._offset = offset  # each time, so that slow drift (NTP slewing) never adds up to a step
            if abs(step_s) <= CLOCK_STEP_S:
                return
            now = self._clock.now()
            for job in scheduler.get_jobs():  # changing one, the tick at least, also wakes the thread
                trigger = job.trigger
                # Ahead: cron times that were skipped are due and run. Back: the next is the first after now.
                if isinstance(trigger, IntervalOnMonotonicTime) or step_s < 0:
                    scheduler.modify_job(job.id, next_run_time=trigger.get_next_fire_time(None, now))


def cron_trigger(schedule: CronSchedule) -> BaseTrigger:
    """A trigger of APScheduler's for a standard cron expression in its time zone."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415  # only needed where there are schedules

    from spancat_daemon.config.cron import trigger_fields  # noqa: PLC0415  # as above
    from spancat_daemon.triggers.wall_clock import WallClockTrigger  # noqa: PLC0415  # as above

    return WallClockTrigger(ZoneInfo(schedule.timezone), trigger_fields(schedule.cron))


def _job(scheduler: _Scheduler, name: str) -> Any:
    with contextlib.suppress(Exception):  # whatever broke the scheduler can be in here too
        return scheduler.get_job(name)
    return None


def _end(scheduler: _Scheduler, *, wait: bool = True) -> None:
    """Ends a scheduler, also a broken one; with `wait` its thread is gone afterwards."""
    thread = scheduler._thread  # noqa: SLF001  # its own shutdown waits for ever on a thread that hangs
    with contextlib.suppress(Exception):  # it is thrown away in any case
        super(BackgroundScheduler, scheduler).shutdown(wait=False)
    if wait and thread is not None and thread is not threading.current_thread():
        thread.join(5.0)
