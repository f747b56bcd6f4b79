"""Times as people write and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from spancat_daemon.config.units import seconds
from spancat_daemon.errors import UsageError


def parse_moment(text: str, *, now: datetime) -> datetime:
    """Returns the moment that `text` names, in UTC.

    Understands RFC 3339 (``2026-11-22T11:30:45Z``), dates with or without a time, in local time where they
    name no zone (``2026-11-22 11:30``), and how long ago it was (``90s``, ``2h``, ``3d ago``).

    Args:
        text: what the user wrote.
        now: an aware time that "ago" counts from.

    Raises:
        UsageError: it names no moment.
    """
    stripped = text.strip()
    try:
        return datetime.fromisoformat(stripped).astimezone(UTC)  # a time without a zone counts as local
    except (ValueError, OverflowError):
        pass
    try:
        return (now - timedelta(seconds=seconds(stripped.removesuffix("ago").rstrip()))).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is not a time",
            hint="write 2026-11-22T11:30:45Z, '2026-11-22 11:30' (local time), or how long ago: 2h",
        ) from None


def age_text(then: datetime, now: datetime) -> str:
    """Returns how long ago `then` was, in the largest unit that fits: ``45s``, ``12m``, ``5h``, ``9d``.

    A time that lies ahead, as after a clock that jumped, is ``-`` and the distance.
    """
    seconds = (now - then).total_seconds()
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    for unit, length, enough in (("d", 86_400, 2), ("h", 3600, 2), ("m", 60, 2)):
        if seconds >= enough * length:
            return f"{sign}{int(seconds // length)}{unit}"
    return f"{sign}{int(seconds)}s"


def local_text(moment: datetime) -> str:
    """Returns the moment in the machine's time zone, to the second: ``2026-11-22 12:30:45``.

    As `logs` shows times, and as :func:`parse_moment` reads those that name no zone.
    """
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"
