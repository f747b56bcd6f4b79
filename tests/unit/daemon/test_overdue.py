from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.config.model import CronSchedule, IntervalSchedule
from spancat_daemon.daemon.overdue import LastRuns
from spancat_daemon.triggers.schedule import Job

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NIGHTLY = Job("products", CronSchedule(cron="0 3 * * *"))
DAILY = Job("products", IntervalSchedule(every="24h", force=True))


def test_nothing_is_overdue_the_first_time_and_the_count_begins(tmp_path: Path) -> None:
    path = tmp_path / "schedules.json"
    assert LastRuns(path).overdue([NIGHTLY, DAILY], NOON) == []
    late = LastRuns(path).overdue([NIGHTLY, DAILY], NOON + timedelta(days=3))
    assert late == [(NIGHTLY, datetime(2026, 11, 23, 3, tzinfo=UTC)), (DAILY, NOON + timedelta(days=1))]


def test_what_ran_is_not_overdue_before_its_next_time(tmp_path: Path) -> None:
    runs = LastRuns(tmp_path / "schedules.json")
    runs.mark("products", NOON, force=False)
    runs.mark("products", NOON, force=True)
    assert runs.overdue([NIGHTLY, DAILY], NOON + timedelta(hours=14, minutes=59)) == []
    assert runs.overdue([NIGHTLY], NOON + timedelta(hours=15)) == [(NIGHTLY, NOON + timedelta(hours=15))]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"products": 7}', b'{"products": "yesterday"}', b"\xff"]
)
def test_a_damaged_file_means_that_nothing_is_overdue(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "schedules.json"
    path.write_bytes(content)
    assert LastRuns(path).overdue([NIGHTLY], NOON) == []
    assert LastRuns(path).overdue([NIGHTLY], NOON + timedelta(days=1)) != []


def test_a_file_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    runs = LastRuns(tmp_path / "missing" / "schedules.json")
    runs.mark("products", NOON, force=False)
    assert runs.overdue([NIGHTLY], NOON + timedelta(days=1)) != []
