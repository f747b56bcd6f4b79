"""Cron expressions as crontab(5) means them, in the terms of APScheduler's ``CronTrigger``.

The two differ in ways that run a job on the wrong day without a word: APScheduler 3 counts weekdays from
Monday = 0, cron from Sunday = 0 = 7; and where both the day of the month and the day of the week are
restricted, cron runs when *either* fits, APScheduler when *both* do. So an expression is read here, to its
sets of numbers, and handed on in words that leave nothing to interpretation.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final, NamedTuple

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTHS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_ITEM: Final = re.compile(
    r"(?:(?P<every>\*)|(?P<first>[0-9a-z]+)(?:-(?P<last>[0-9a-z]+))?)(?:/(?P<step>[0-9]{1,4}))?",
    re.IGNORECASE | re.ASCII,
)
_SHORTHANDS: Final = MappingProxyType(
    {
        "@yearly": "0 0 1 1 *",
        "@annually": "0 0 1 1 *",
        "@monthly": "0 0 1 * *",
        "@weekly": "0 0 * * 0",
        "@daily": "0 0 * * *",
        "@midnight": "0 0 * * *",
        "@hourly": "0 * * * *",
    }
)


class _Field(NamedTuple):
    keyword: str  # CronTrigger's
    title: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()  # of the numbers from lowest on


_WEEKDAY: Final = _Field("day_of_week", "day of the week", 0, 7, _WEEKDAYS)
_FIELDS: Final = (
    _Field("minute", "minute", 0, 59),
    _Field("hour", "hour", 0, 23),
    _Field("day", "day of the month", 1, 31),
    _Field("month", "month", 1, 12, _MONTHS),
    _WEEKDAY,
)


def trigger_fields(cron: str) -> dict[str, str]:
    """The keyword arguments of ``apscheduler.triggers.cron.CronTrigger`` for a standard cron expression.

    Five fields (minute, hour, day of the month, month, day of the week) of ``*``, numbers, names (``mon``,
    ``jan``), ranges, lists and steps, with Sunday as 0 or 7; or ``@hourly``, ``@daily``, ``@weekly``,
    ``@monthly``, ``@yearly``. The time zone is the caller's to add.

    Raises:
        ValueError: it is none, could never run, or restricts both kinds of day (see the module).
    """
    text = cron.strip()
    if text.startswith("@"):
        if text.lower() == "@reboot":
            raise ValueError("'@reboot' is not needed: every rule is looked at when the daemon starts")
        if text.lower() not in _SHORTHANDS:
            raise ValueError(f"{text!r} is not one of {', '.join(_SHORTHANDS)}")
        text = _SHORTHANDS[text.lower()]
    parts = text.split()
    if len(parts) != len(_FIELDS):
        raise ValueError(
            f"{cron!r} has {len(parts)} fields instead of 5: minute, hour, day of the month, month, "
            'day of the week, such as "0 3 * * *"'
        )
    numbers = {field.keyword: _numbers(field, part, cron) for field, part in zip(_FIELDS, parts, strict=True)}
    # 0 and 7 are both Sunday
    numbers["day_of_week"] = {number % 7 for number in numbers["day_of_week"]}
    _check_days(numbers, cron)
    return {field.keyword: _in_words(field, numbers[field.keyword]) for field in _FIELDS}


def _numbers(field: _Field, part: str, cron: str) -> set[int]:
    numbers: set[int] = set()
    for item in part.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ValueError(f"{item!r} is not a {field.title} in {cron!r}; write *, 5, 1-5, 1,3 or */10")
        step = int(match["step"] or 1)
        if step == 0:
            raise ValueError(f"{item!r} has the step 0 in {cron!r}; the smallest is 1")
        if match["every"]:
            first, last = field.lowest, field.highest - (field is _WEEKDAY)
        else:
            first = _number(field, match["first"], cron)
            if match["last"]:
                last = _number(field, match["last"], cron)
            else:
                last = (
                    field.highest - (field is _WEEKDAY and first < field.highest) if match["step"] else first
                )
        if last < first:
            if field is not _WEEKDAY:
                raise ValueError(f"{item!r} ends before it begins in {cron!r}")
            last += 7  # sat-sun, fri-mon: what people write, although crontab(5) counts from Sunday
        numbers.update(range(first, last + 1, step))
    return numbers


def _number(field: _Field, text: str, cron: str) -> int:
    if text.isdigit():
        number = int(text) if len(text) < 5 else field.highest + 1
    elif text.lower() in field.names:
        number = field.names.index(text.lower()) + field.lowest
    else:
        known = f"; names are {', '.join(field.names)}" if field.names else ""
        raise ValueError(f"{text!r} is not a {field.title} in {cron!r}{known}")
    if not field.lowest <= number <= field.highest:
        raise ValueError(
            f"{text!r} is not a {field.title} in {cron!r}; they go from {field.lowest} to {field.highest}"
        )
    return number


def _check_days(numbers: dict[str, set[int]], cron: str) -> None:
    days, months, weekdays = numbers["day"], numbers["month"], numbers["day_of_week"]
    if len(days) < 31 and len(weekdays) < 7:
        raise ValueError(
            f"{cron!r} restricts the day of the month and the day of the week, which cron joins with 'or' "
            "and others with 'and'; write a schedule for each"
        )
    if not any(min(days) <= _LONGEST_MONTHS[month - 1] for month in months):
        raise ValueError(f"{cron!r} never comes: no such month has a day {min(days)}")


def _in_words(field: _Field, numbers: set[int]) -> str:
    """``*``, or a plain list: the one notation that cron and APScheduler read the same."""
    if len(numbers) == field.highest - field.lowest + 1 - (field is _WEEKDAY):
        return "*"
    if field is _WEEKDAY:
        return ",".join(_WEEKDAYS[number] for number in sorted(numbers))
    return ",".join(str(number) for number in sorted(numbers))
