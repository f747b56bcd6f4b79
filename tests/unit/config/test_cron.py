from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spancat_daemon.config.cron import trigger_fields

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def next_run(cron: str, after: datetime = MONDAY) -> datetime:
    trigger: Any = CronTrigger(**trigger_fields(cron), timezone=UTC)  # type: ignore[no-untyped-call]  # it has no types
    run = trigger.get_next_fire_time(None, after)
    assert isinstance(run, datetime)
    return run


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 3 * * *", {"minute": "0", "hour": "3", "day": "*", "month": "*", "day_of_week": "*"}),
        (
            "*/20 8-18/5 1,15 jan,JUL *",
            {"minute": "0,20,40", "hour": "8,13,18", "day": "1,15", "month": "1,7", "day_of_week": "*"},
        ),
        ("5/25 0 * * *", {"minute": "5,30,55", "hour": "0", "day": "*", "month": "*", "day_of_week": "*"}),
        ("@weekly", {"minute": "0", "hour": "0", "day": "*", "month": "*", "day_of_week": "sun"}),
        (
            "0 0 * * fri-mon",
            {"minute": "0", "hour": "0", "day": "*", "month": "*", "day_of_week": "sun,mon,fri,sat"},
        ),
        (
            "0 0 * * */2",
            {"minute": "0", "hour": "0", "day": "*", "month": "*", "day_of_week": "sun,tue,thu,sat"},
        ),
        ("* * * * 0-7", {"minute": "*", "hour": "*", "day": "*", "month": "*", "day_of_week": "*"}),
    ],
)
def test_an_expression_becomes_plain_lists(cron: str, expected: dict[str, str]) -> None:
    assert trigger_fields(cron) == expected


@pytest.mark.parametrize(
    ("weekday", "days_on"),
    [("0", 6), ("7", 6), ("sun", 6), ("1", 0), ("MON", 0), ("5", 4), ("6", 5), ("5-7", 4), ("3/2", 2)],
)
def test_weekdays_are_those_of_crontab_and_not_of_apscheduler(weekday: str, days_on: int) -> None:
    assert next_run(f"0 12 * * {weekday}") == MONDAY + timedelta(days=days_on, hours=12)


@pytest.mark.parametrize(
    ("cron", "reason"),
    [
        ("", "0 fields instead of 5"),
        ("0 0 3 * * *", "6 fields instead of 5"),
        ("60 * * * *", "'60' is not a minute .* from 0 to 59"),
        ("* 24 * * *", "from 0 to 23"),
        ("* * 0 * *", "from 1 to 31"),
        ("* * * 13 *", "from 1 to 12"),
        ("* * * * 8", "from 0 to 7"),
        ("99999999999 * * * *", "is not a minute"),
        ("30-10 * * * *", "ends before it begins"),
        ("*/0 * * * *", "step 0"),
        ("*/x * * * *", "is not a minute"),
        ("1,,2 * * * *", "'' is not a minute"),
        ("-5 * * * *", "is not a minute"),
        ("* * * * monday", "names are sun, mon"),
        ("* * * janvier *", "names are jan, feb"),
        ("* mon * * *", "'mon' is not a hour"),
        ("* * L * *", "'L' is not a day of the month"),
        ("0 0 31 2,4 *", "never comes"),
        ("0 0 13 * 5", "a schedule for each"),
        ("@reboot", "looked at when the daemon starts"),
        ("@never", "is not one of @yearly"),
        ("² * * * *", "is not a minute"),
    ],
)
def test_a_bad_expression_is_refused_with_the_reason(cron: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        trigger_fields(cron)


def test_the_29th_of_february_comes() -> None:
    assert next_run("0 0 29 2 *") == datetime(2028, 2, 29, tzinfo=UTC)


def items(lowest: int, highest: int) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """One item of a field as it is written, and the numbers it stands for."""
    number = st.integers(lowest, highest)
    single = number.map(lambda n: (str(n), frozenset({n})))
    every = st.integers(1, 70).map(lambda s: (f"*/{s}", frozenset(range(lowest, highest + 1, s))))
    ranges = st.tuples(number, number, st.integers(1, 9)).map(
        lambda t: (f"{min(t[:2])}-{max(t[:2])}/{t[2]}", frozenset(range(min(t[:2]), max(t[:2]) + 1, t[2])))
    )
    return st.one_of(single, every, ranges, st.just(("*", frozenset(range(lowest, highest + 1)))))


def fields(lowest: int, highest: int) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    return st.lists(items(lowest, highest), min_size=1, max_size=3).map(
        lambda many: (
            ",".join(text for text, _ in many),
            frozenset().union(*(numbers for _, numbers in many)),
        )
    )


@settings(deadline=None, max_examples=60)
@given(
    fields(0, 59),
    fields(0, 23),
    fields(1, 31),
    fields(1, 12),
    fields(0, 6),
    st.integers(0, 6 * 365 * 24 * 60).map(lambda minutes: MONDAY + timedelta(minutes=minutes)),
)
def test_apscheduler_runs_when_crontab_says(
    minute: tuple[str, frozenset[int]],
    hour: tuple[str, frozenset[int]],
    day: tuple[str, frozenset[int]],
    month: tuple[str, frozenset[int]],
    weekday: tuple[str, frozenset[int]],
    start: datetime,
) -> None:
    if len(weekday[1]) < 7:
        day = ("*", frozenset(range(1, 32)))
    cron = " ".join(part[0] for part in (minute, hour, day, month, weekday))
    assume(min(day[1]) < 29 or month[1] - {2, 4, 6, 9, 11})  # else there is no such day, or a rare one
    run = next_run(cron, start)
    assert run.minute in minute[1]
    assert run.hour in hour[1]
    assert run.day in day[1]
    assert run.month in month[1]
    assert run.isoweekday() % 7 in weekday[1]
    # nothing between is left out: the day before the run, looked at hour by hour
    moment = run - timedelta(hours=1)
    while moment > max(start, run - timedelta(days=1)):
        fits = moment.hour in hour[1] and moment.day in day[1] and moment.month in month[1]
        assert not (fits and moment.isoweekday() % 7 in weekday[1] and run.minute in minute[1])
        moment -= timedelta(hours=1)
