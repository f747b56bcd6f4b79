"""Which scheduled checkpoints fell due while no daemon ran.

APScheduler's job store is in memory, for daemon.toml says what is to run; when it last ran is kept here, in
the daemon's state directory.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from spancat_daemon.config.model import IntervalSchedule
from spancat_daemon.daemon.remembered import read_times, write_times
from spancat_daemon.triggers.schedule import cron_trigger

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spancat_daemon.config.model import CronSchedule
    from spancat_daemon.triggers.schedule import Job


class LastRuns:
    """When the schedules of each rule were last due, over restarts.

    A file that is lost or damaged only means that nothing counts as overdue.
    """

    def __init__(self, path: Path) -> None:
        """Reads `path`, if it is there."""
        self._path = path
        self._times = read_times(path)

    def overdue(self, jobs: Sequence[Job], now: datetime) -> list[tuple[Job, datetime]]:
        """The jobs that were due since they last ran, each with the time; starts the count for new ones."""
        late: list[tuple[Job, datetime]] = []
        for job in jobs:
            last = self._times.get(_name(job.key, force=job.schedule.force))
            if last is None:
                self.mark(job.key, now, force=job.schedule.force)
            elif (due := _due_after(job.schedule, last)) is not None and due <= now:
                late.append((job, due))
        return late

    def mark(self, key: str, now: datetime, *, force: bool) -> None:
        """Remembers that a schedule of `key` ran; a full disk makes it forget, no more."""
        self._times[_name(key, force=force)] = now
        write_times(self._path, self._times)


def _name(key: str, *, force: bool) -> str:
    key = os.fsencode(key).decode("utf-8", "backslashreplace")  # a match of a glob can be called anything
    return f"{key} forced" if force else key


def _due_after(schedule: CronSchedule | IntervalSchedule, last: datetime) -> datetime | None:
    if isinstance(schedule, IntervalSchedule):
        return last + timedelta(seconds=schedule.every)
    trigger = cron_trigger(schedule)
    due: datetime | None = trigger.get_next_fire_time(  # type: ignore[no-untyped-call]  # APScheduler has none
        None, last + timedelta(microseconds=1)
    )
    return due
