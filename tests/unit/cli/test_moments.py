from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.cli.moments import age_text, local_text, parse_moment
from spancat_daemon.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T11:30:45Z", datetime(2026, 11, 22, 11, 30, 45, tzinfo=UTC)),
        ("2026-11-22T11:30:45.123456Z", datetime(2026, 11, 22, 11, 30, 45, 123456, tzinfo=UTC)),
        ("2026-11-22T13:30:45+02:00", datetime(2026, 11, 22, 11, 30, 45, tzinfo=UTC)),
        (" 2h ", NOW - timedelta(hours=2)),
        ("2h ago", NOW - timedelta(hours=2)),
        ("90s", NOW - timedelta(seconds=90)),
        ("1.5d ago", NOW - timedelta(hours=36)),
        ("2w", NOW - timedelta(days=14)),
    ],
)
def test_moments_are_read(text: str, expected: datetime) -> None:
    assert parse_moment(text, now=NOW) == expected


@pytest.mark.usefixtures("_in_berlin")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22 11:30", datetime(2026, 11, 22, 10, 30, tzinfo=UTC)),
        ("2026-07-22 11:30", datetime(2026, 7, 22, 9, 30, tzinfo=UTC)),
        ("2026-11-22", datetime(2026, 11, 21, 23, 0, tzinfo=UTC)),
    ],
)
def test_a_time_without_a_zone_is_local_to_that_day(text: str, expected: datetime) -> None:
    assert parse_moment(text, now=NOW) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2h 3m", "-2h", "2", "2026-13-01", "99999999999w", "ago"])
def test_what_is_no_moment_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time") as caught:
        parse_moment(text, now=NOW)
    assert "2h" in caught.value.hint


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d"), (-30, "-30s")],
)
def test_ages(seconds: int, expected: str) -> None:
    assert age_text(NOW - timedelta(seconds=seconds), NOW) == expected


@pytest.mark.usefixtures("_in_berlin")
def test_times_are_shown_as_they_are_read() -> None:
    shown = local_text(NOW)
    assert shown == "2026-11-22 13:00:00"
    assert parse_moment(shown, now=NOW) == NOW
