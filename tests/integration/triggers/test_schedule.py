"""The real scheduler thread under a clock that does as it is told."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import apscheduler.schedulers.base
import pytest

from spancat_daemon.config.model import CronSchedule, IntervalSchedule
from spancat_daemon.triggers.schedule import TICK_S, Clock, Job, ScheduleEvent, ScheduleTrigger, _Scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

DEADLINE_S = 120.0
BERLIN = ZoneInfo("Europe/Berlin")


class Controlled(Clock):
    """Time passes only by `pass_s`; `step_s` moves the wall clock alone."""

    def __init__(self, now: datetime) -> None:
        self.wall, self.seconds = now.astimezone(UTC), 1000.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.seconds

    def pass_s(self, seconds: float) -> None:
        self.wall, self.seconds = self.wall + timedelta(seconds=seconds), self.seconds + seconds

    def step_s(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)


class Scheduled:
    """A running trigger, what it told, and a way to let it look at the clock."""

    def __init__(self, clock: Controlled) -> None:
        self.clock = clock
        self.due: list[tuple[str, bool]] = []
        self.events: list[ScheduleEvent] = []
        self.trigger = ScheduleTrigger(on_due=self._on_due, on_event=self.events.append, clock=clock)

    def _on_due(self, key: str, force: bool) -> None:
        self.due.append((key, force))

    def look(self) -> list[tuple[str, bool]]:
        """What became due up to now; returns once the scheduler's thread has looked and waits again."""
        scheduler = self.trigger._scheduler
        assert scheduler is not None
        done = threading.Event()

        def mark(_when: datetime | None = None) -> None:
            done.set()

        self.due.clear()
        # Due at this moment and last by name: all others that are due run before it.
        scheduler.add_job(mark, next_run_time=self.clock.now(), id="~")  # type: ignore[no-untyped-call]
        assert done.wait(DEADLINE_S)
        told, self.due = self.due, []
        return told

    def pass_s(self, seconds: float) -> list[tuple[str, bool]]:
        self.clock.pass_s(seconds)
        return self.look()

    def next(self, key: str = "one") -> datetime:
        when = self.trigger.next_run(key)
        assert when is not None
        return when


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Controlled:
    controlled = Controlled(datetime(2026, 3, 2, 12, 0, 1, tzinfo=UTC))

    class ControlledDatetime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return controlled.now().astimezone(tz)

    monkeypatch.setattr(apscheduler.schedulers.base, "datetime", ControlledDatetime)
    return controlled


@pytest.fixture
def scheduled(clock: Controlled) -> Iterator[Scheduled]:
    running = Scheduled(clock)
    threads = threading.active_count()
    running.trigger.start()
    yield running
    running.trigger.stop()
    assert threading.active_count() == threads


def every(seconds: float, key: str = "one", *, force: bool = False) -> Job:
    return Job(key, IntervalSchedule(every=seconds, force=force))


def cron(expression: str, zone: str = "UTC", key: str = "one") -> Job:
    return Job(key, CronSchedule(cron=expression, timezone=zone))


def test_an_interval_is_due_again_and_again(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([every(60, force=True)])
    assert scheduled.pass_s(59) == []
    assert scheduled.pass_s(1) == [("one", True)]
    assert scheduled.pass_s(59.9) == []
    assert scheduled.pass_s(0.1) == [("one", True)]


def test_an_interval_keeps_its_grid_when_it_is_late(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([every(60)])
    assert scheduled.pass_s(70) == [("one", False)]
    assert scheduled.pass_s(49) == []
    assert scheduled.pass_s(1) == [("one", False)]


def test_what_was_missed_runs_once_and_is_said(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([every(60, "interval"), cron("*/5 * * * *", key="cron")])
    assert sorted(scheduled.pass_s(7200 + 90)) == [("cron", False), ("interval", False)]
    late = {event.key: event.fields for event in scheduled.events}
    assert late["interval"]["late_s"] == 7230.0
    assert "cron" in late
    assert {event.event for event in scheduled.events} == {"schedule.missed"}
    assert scheduled.pass_s(1) == []


def test_an_interval_does_not_care_for_the_wall_clock(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([every(600)])
    assert scheduled.pass_s(300) == []
    for step in (-3600, 3600, 86400, -90000):
        scheduled.clock.step_s(step)
        scheduled.trigger.check_clock()
        assert scheduled.next() == scheduled.clock.now() + timedelta(seconds=300)
        assert scheduled.look() == []
    assert scheduled.pass_s(299) == []
    assert scheduled.pass_s(1) == [("one", False)]
    assert scheduled.next() == scheduled.clock.now() + timedelta(seconds=600)


def test_a_step_is_followed_before_anything_is_called_due(scheduled: Scheduled) -> None:
    # Without check_clock: the scheduler's own tick comes first.
    scheduled.trigger.set_jobs([every(600)])
    scheduled.clock.step_s(3600)
    assert scheduled.look() == []
    assert scheduled.next() == scheduled.clock.now() + timedelta(seconds=600)


def test_a_clock_set_back_does_not_delay_cron(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([cron("*/5 * * * *")])
    assert scheduled.next() == datetime(2026, 3, 2, 12, 5, tzinfo=UTC)
    scheduled.clock.step_s(-3600)
    scheduled.trigger.check_clock()
    assert scheduled.next() == datetime(2026, 3, 2, 11, 5, tzinfo=UTC)
    assert scheduled.pass_s(298) == []
    assert scheduled.pass_s(1) == [("one", False)]


def test_a_clock_set_ahead_makes_skipped_cron_times_run_once(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([cron("0 13 * * *")])
    scheduled.clock.step_s(7200)
    scheduled.trigger.check_clock()
    assert scheduled.look() + scheduled.look() in ([("one", False)], [])
    assert scheduled.next() == datetime(2026, 3, 3, 13, 0, tzinfo=UTC)
    assert [event.fields["late_s"] for event in scheduled.events] == [3601.0]


def test_the_scheduler_wakes_up_by_itself_after_a_step(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([cron("0 13 * * *")])
    scheduled.clock.step_s(7200)
    scheduled.trigger.check_clock()
    deadline = time.monotonic() + DEADLINE_S
    while not scheduled.due:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert scheduled.due == [("one", False)]


def test_drift_is_not_a_step(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([cron("0 13 * * *")])
    before = scheduled.next()
    for _ in range(20):
        scheduled.clock.step_s(-1)
        scheduled.trigger.check_clock()
    assert scheduled.next() == before
    assert scheduled.pass_s(3618) == []
    assert scheduled.pass_s(1) == [("one", False)]


def test_cron_means_standard_weekdays(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([cron("0 3 * * 0")])  # Sunday; the clock stands on a Monday
    assert scheduled.next() == datetime(2026, 3, 8, 3, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("start", "expression", "runs"),
    [
        # Autumn: 02:30 comes twice and runs twice; an hour apart, once as summer and once as winter time.
        (datetime(2026, 10, 24, 12, tzinfo=UTC), "30 2 * * *", ["25 00:30", "25 01:30", "26 01:30"]),
        # Spring: 02:30 does not exist; it runs at 03:30 summer time, then as ever.
        (datetime(2026, 3, 28, 12, tzinfo=UTC), "30 2 * * *", ["29 01:30", "30 00:30", "31 00:30"]),
        # The midnight after a day of 23 hours, which APScheduler leaves out.
        (datetime(2026, 3, 28, 12, tzinfo=UTC), "0 0 * * *", ["28 23:00", "29 22:00", "30 22:00"]),
        # Each hour that passes has its run, on both days.
        (datetime(2026, 10, 24, 23, 50, tzinfo=UTC), "30 * * * *", ["25 00:30", "25 01:30", "25 02:30"]),
        (datetime(2026, 3, 28, 23, 50, tzinfo=UTC), "30 * * * *", ["29 00:30", "29 01:30", "29 02:30"]),
        # Times outside of the change know nothing of it.
        (datetime(2026, 10, 24, 12, tzinfo=UTC), "0 12 * * *", ["25 11:00", "26 11:00", "27 11:00"]),
    ],
)
def test_daylight_saving_in_berlin(
    scheduled: Scheduled, start: datetime, expression: str, runs: list[str]
) -> None:
    scheduled.clock.wall = start
    scheduled.trigger.check_clock()
    scheduled.trigger.set_jobs([cron(expression, "Europe/Berlin")])
    happened = []
    for _ in runs:
        when = scheduled.next()
        assert when.tzinfo == BERLIN
        wait_s = (when.astimezone(UTC) - scheduled.clock.now()).total_seconds()
        assert scheduled.pass_s(wait_s - 0.5) == []
        assert scheduled.pass_s(0.5) == [("one", False)]
        happened.append(scheduled.clock.now().strftime("%d %H:%M"))
    assert happened == runs


def test_utc_knows_no_daylight_saving(scheduled: Scheduled) -> None:
    scheduled.clock.wall = datetime(2026, 10, 24, 12, tzinfo=UTC)
    scheduled.trigger.check_clock()
    scheduled.trigger.set_jobs([cron("30 2 * * *")])
    for day in (25, 26):
        assert scheduled.next() == datetime(2026, 10, day, 2, 30, tzinfo=UTC)
        wait_s = (scheduled.next() - scheduled.clock.now()).total_seconds()
        assert scheduled.pass_s(wait_s) == [("one", False)]


def test_a_new_set_leaves_the_others_their_time(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([every(600, "kept"), every(600, "gone")])
    scheduled.clock.pass_s(400)
    scheduled.trigger.set_jobs([every(600, "kept"), every(600, "new")])
    assert scheduled.next("kept") == scheduled.clock.now() + timedelta(seconds=200)
    assert scheduled.trigger.next_run("gone") is None
    assert scheduled.pass_s(200) == [("kept", False)]
    assert scheduled.pass_s(400) == [("new", False)]


def test_a_key_can_have_several_schedules_even_equal_ones(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([every(600), every(60), every(60), cron("*/7 * * * *")])
    assert scheduled.next() == scheduled.clock.now() + timedelta(seconds=60)
    assert scheduled.pass_s(60) == [("one", False), ("one", False)]
    scheduled.trigger.set_jobs([])
    assert scheduled.trigger.next_run("one") is None
    assert scheduled.pass_s(10_000) == []


def test_a_failing_callback_is_said_and_tried_again(
    scheduled: Scheduled, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_key: str, _force: bool) -> None:
        raise RuntimeError("a fault of the service")

    working = scheduled.trigger._on_due
    scheduled.trigger._on_due = fail
    scheduled.trigger.set_jobs([every(60)])
    assert scheduled.pass_s(60) == []
    assert [(event.key, event.fields["reason"]) for event in scheduled.events] == [("one", "failed")]
    assert "a fault of the service" in caplog.text
    scheduled.trigger._on_due = working
    assert scheduled.pass_s(60) == [("one", False)]


def test_callbacks_hold_no_lock(scheduled: Scheduled) -> None:
    # Whoever is told can wait for a thread that asks for the next run.
    answers: list[datetime | None] = []

    def ask(_key: str, _force: bool) -> None:
        asking = threading.Thread(target=lambda: answers.append(scheduled.trigger.next_run("one")))
        asking.start()
        asking.join(120)

    scheduled.trigger._on_due = ask
    scheduled.trigger.set_jobs([every(60)])
    scheduled.pass_s(60)
    assert len(answers) == 1


def test_the_tick_shows_that_the_thread_lives(scheduled: Scheduled) -> None:
    scheduled.look()
    scheduled.clock.pass_s(TICK_S * 3)
    assert scheduled.trigger.tick_age_s() >= TICK_S * 3
    scheduled.look()
    assert scheduled.trigger.tick_age_s() == 0


def test_it_leaves_no_thread_and_starts_again(clock: Controlled) -> None:
    running = Scheduled(clock)
    threads = threading.active_count()
    running.trigger.set_jobs([every(60)])
    for _ in range(3):
        running.trigger.start()
        running.trigger.start()
        assert threading.active_count() == threads + 1
        assert running.pass_s(60) == [("one", False)]
        running.trigger.stop()
        running.trigger.stop()
        assert threading.active_count() == threads
        running.trigger.check_clock()
        assert running.trigger.next_run("one") is None


def test_a_raising_job_store_does_not_end_it(scheduled: Scheduled, caplog: pytest.LogCaptureFixture) -> None:
    """APScheduler's thread dies of this and `running` stays true."""
    scheduled.trigger.set_jobs([every(600), cron("0 13 * * *", key="daily")])
    scheduled.look()
    scheduler = scheduled.trigger._scheduler
    assert scheduler is not None
    thread = scheduler._thread
    assert thread is not None
    failed = threading.Event()

    def fail(*_arguments: object) -> None:
        failed.set()
        raise RuntimeError("a broken job store")

    store = scheduler._jobstores["default"]
    store.update_job = store.get_next_run_time = fail
    scheduled.clock.pass_s(5 * TICK_S)
    scheduler.wakeup()  # type: ignore[no-untyped-call]
    assert failed.wait(DEADLINE_S)
    scheduled.trigger.check_clock()
    assert scheduled.trigger._scheduler is not scheduler
    assert scheduled.events[-1].key is None
    assert "started anew" in scheduled.events[-1].fields["hint"]
    assert scheduled.next() == scheduled.clock.now() + timedelta(seconds=600 - 5 * TICK_S)
    assert scheduled.next("daily") == datetime(2026, 3, 2, 13, 0, tzinfo=UTC)
    assert scheduled.pass_s(600) == [("one", False)]
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert "a broken job store" in caplog.text


def kill(scheduled: Scheduled) -> _Scheduler:
    """Ends the scheduler's thread as an exception does; APScheduler still says that it runs."""
    dead = scheduled.trigger._scheduler
    assert dead is not None
    thread = dead._thread
    assert thread is not None

    def die() -> float:
        raise SystemError("the end")

    dead._process_jobs = die  # type: ignore[method-assign]
    dead.wakeup()  # type: ignore[no-untyped-call]
    thread.join(DEADLINE_S)
    assert dead.running
    return dead


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_came_due_while_the_thread_was_dead_runs(scheduled: Scheduled) -> None:
    scheduled.trigger.set_jobs([cron("0 13 * * *", key="daily"), every(600, "interval")])
    scheduled.look()
    kill(scheduled)
    scheduled.clock.pass_s(4000)
    scheduled.trigger.check_clock()
    deadline = time.monotonic() + DEADLINE_S
    while len(scheduled.due) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert sorted(scheduled.due) == [("daily", False), ("interval", False)]
    assert scheduled.next("daily") == datetime(2026, 3, 3, 13, 0, tzinfo=UTC)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_replaced_with_growing_delays(
    scheduled: Scheduled, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduled.trigger.set_jobs([every(600)])
    waits = []
    for _ in range(4):
        dead = kill(scheduled)
        waited = 0
        while scheduled.trigger._scheduler is dead:
            scheduled.trigger.check_clock()
            scheduled.clock.pass_s(1)
            waited += 1
        waits.append(waited)
    assert scheduled.events[0].fields["reason"] == "the scheduler died"
    assert len(scheduled.events) == 4
    assert scheduled.look() in ([], [("one", False)])
