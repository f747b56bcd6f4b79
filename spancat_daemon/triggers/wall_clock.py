"""When a cron expression is due in a zone whose clocks change.

APScheduler 3.11's own `CronTrigger` walks through such a night by adding days to moments, and leaves out the
midnight after a spring night: 24 hours from 00:00 lead to 01:00, past it. So it is asked here in UTC, where
clocks never change, which wall times fit; which moments show them is found here.
"""

# mypy: disable-error-code="no-untyped-call"
# (APScheduler 3 has no annotations.)

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zoneinfo import ZoneInfo

_DAY: Final = timedelta(days=1)
_INSTANT: Final = timedelta(microseconds=1)


class WallClockTrigger(BaseTrigger):
    """Due at each moment whose wall time fits.

    A time that comes twice is due twice; one that is left out is due at the moment it would have been without
    the change. What falls on one moment is due once.

    Args:
        zone: whose wall time it is.
        fields: the expression, as `CronTrigger` takes it.
    """

    __slots__ = ("_times", "_zone")

    def __init__(self, zone: ZoneInfo, fields: dict[str, str]) -> None:
        self._zone = zone
        self._times = CronTrigger(timezone=UTC, **fields)

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The first moment from `now` on, or after the previous one if that is earlier; None: never again."""
        start = now.astimezone(UTC)
        if previous_fire_time is not None:
            previous = previous_fire_time.astimezone(UTC)
            start = previous + _INSTANT if start == previous else min(start, previous + _INSTANT)
        best: datetime | None = None
        for time in self._times_from(self._wall_time(start) - self._change_near(start)):
            if best is not None and time > self._wall_time(best) + self._change_near(best):
                break
            for moment in self._moments_of(time):
                if moment >= start and (best is None or moment < best):
                    best = moment
        return None if best is None else best.astimezone(self._zone)

    def _times_from(self, time: datetime) -> Iterator[datetime]:
        """The wall times that fit, in order."""
        following = time.replace(tzinfo=UTC)
        while (found := self._times.get_next_fire_time(None, following)) is not None:
            yield found.replace(tzinfo=None)
            following = found + _INSTANT

    def _moments_of(self, time: datetime) -> set[datetime]:
        """When that is shown; one moment of a time that is left out: by the offset before the change."""
        local = time.replace(tzinfo=self._zone)
        later = local.replace(fold=1)
        if local.astimezone(UTC) > later.astimezone(UTC):  # left out
            return {local.astimezone(UTC)}
        return {local.astimezone(UTC), later.astimezone(UTC)}

    def _wall_time(self, moment: datetime) -> datetime:
        return moment.astimezone(self._zone).replace(tzinfo=None)

    def _change_near(self, moment: datetime) -> timedelta:
        """By how much the clocks change within a day of it; nearly always not at all."""
        offsets = [
            (moment + days * _DAY).astimezone(self._zone).utcoffset() or timedelta() for days in (-1, 0, 1)
        ]
        return max(offsets) - min(offsets)
