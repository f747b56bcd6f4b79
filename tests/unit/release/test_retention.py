from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spancat_daemon.config.model import Keep
from spancat_daemon.release.folder import Release
from spancat_daemon.release.manifest import FileDigest
from spancat_daemon.release.retention import decide
from tests.integration.release.fakes import manifest_of

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
OFF = {"last": 0, "within": 0, "hourly": 0, "daily": 0, "weekly": 0, "best": 0}


def release(sequence: int, age_h: float = 0, *, content: int | None = None, **metrics: Any) -> Release:
    digest = f"{sequence if content is None else content:064x}"
    manifest = manifest_of(
        sequence,
        {"model.bin": FileDigest(digest, 1)},
        created=NOW - timedelta(hours=age_h),
        metrics=metrics,
    )
    return Release(manifest.id, sequence, Path("/releases", manifest.id), manifest, live=False)


def keep(**lines: Any) -> Keep:
    return Keep.model_construct(**(OFF | {"metric": "spans_sc_f"} | lines))


def reasons(releases: list[Release], keeping: Keep, **facts: Any) -> dict[int, tuple[str, ...]]:
    facts = {"live_id": None, "previous_id": None, "pinned": set(), "leased": set(), "now": NOW} | facts
    verdicts = decide(releases, keeping, **facts)
    sequences = [verdict.release.sequence for verdict in verdicts]
    assert sequences == sorted(sequences, reverse=True)
    return {verdict.release.sequence: verdict.kept_because for verdict in verdicts}


def kept(releases: list[Release], keeping: Keep, **facts: Any) -> set[int]:
    return {sequence for sequence, why in reasons(releases, keeping, **facts).items() if why}


def test_the_last_ones_by_sequence() -> None:
    releases = [release(n, age_h=n) for n in (3, 1, 5, 2, 4)]  # the newest claims to be the oldest
    assert reasons(releases, keep(last=2)) == {
        5: ("last 2",),
        4: ("last 2",),
        3: (),
        2: (),
        1: (),
    }


def test_what_is_kept_for_what_it_is() -> None:
    releases = [release(n) for n in range(1, 7)]
    facts = {
        "live_id": releases[0].id,
        "previous_id": releases[1].id,
        "pinned": {releases[2].id},
        "leased": {releases[3].id},
    }
    assert reasons(releases, keep(last=1), **facts) == {
        6: ("last 1",),
        5: (),
        4: ("leased",),
        3: ("pinned",),
        2: ("previous",),
        1: ("live",),
    }


def test_leases_are_asked_for_only_where_it_matters() -> None:
    asked: list[int] = []

    def leased(candidate: Release) -> bool:
        asked.append(candidate.sequence)
        return candidate.sequence == 1

    assert kept([release(n) for n in range(1, 4)], keep(last=1), leased=leased) == {3, 1}
    assert asked == [2, 1]


def test_an_empty_table_keeps_everything() -> None:
    assert set(reasons([release(n) for n in range(1, 50)], keep()).values()) == {("retention is off",)}


def test_equal_contents_count_once_and_the_newest_stands_for_them() -> None:
    releases = [release(n, content=content) for n, content in enumerate([7, 8, 7, 9, 9, 9], 1)]
    assert kept(releases, keep(last=2)) == {6, 3}
    assert kept(releases, keep(last=3)) == {6, 3, 2}
    assert kept(releases, keep(last=3), live_id=releases[0].id) == {6, 3, 2, 1}


def test_hours_days_and_weeks_keep_the_last_of_each_that_has_one() -> None:
    ages = [0.5, 0.75, 1.5, 30, 31, 24 * 8, 24 * 40]
    releases = [release(len(ages) - n, age) for n, age in enumerate(ages)]
    assert reasons(releases, keep(hourly=3, daily=3, weekly=2)) == {
        7: ("hourly 2026-11-22T11", "daily 2026-11-22", "weekly 2026-W47"),
        6: (),
        5: ("hourly 2026-11-22T10",),
        4: ("hourly 2026-11-21T06", "daily 2026-11-21"),
        3: (),
        2: ("daily 2026-11-14", "weekly 2026-W46"),
        1: (),
    }


def test_within_counts_from_the_newest_so_that_a_pause_deletes_nothing() -> None:
    releases = [release(n, age_h=1000 - n) for n in range(1, 6)]
    assert reasons(releases, keep(within=7200))[4] == ("within 2h",)
    assert kept(releases, keep(within=7200)) == {5, 4}


def test_the_best_by_metric_newer_first_where_equal() -> None:
    values: list[Any] = [0.5, 0.91234, 0.7, 0.91234, None, "0.99", True, float("nan")]
    releases = [release(n, spans_sc_f=value) for n, value in enumerate(values, 1)]
    why = reasons(releases, keep(best=3))
    assert why[4] == ("best 1: 0.9123 spans_sc_f",)
    assert why[2] == ("best 2: 0.9123 spans_sc_f",)
    assert why[3] == ("best 3: 0.7 spans_sc_f",)
    assert {sequence for sequence, reason in why.items() if reason} == {2, 3, 4}


@pytest.mark.parametrize("jump_h", [-24 * 365, -30, 30, 24 * 365])
@pytest.mark.parametrize(
    "keeping", [keep(last=3), keep(within=10 * 3600), keep(hourly=8), keep(daily=3), keep(weekly=2)]
)
def test_a_clock_that_jumps_now_lets_nothing_more_go(jump_h: float, keeping: Keep) -> None:
    releases = [release(n, age_h=40 - n) for n in range(1, 40)]
    before = kept(releases, keeping)
    assert kept(releases, keeping, now=NOW + timedelta(hours=jump_h)) >= before


@pytest.mark.parametrize("keeping", [keep(within=10 * 3600), keep(hourly=8), keep(daily=1)])
def test_releases_from_the_future_push_nobody_out_and_are_kept_too(keeping: Keep) -> None:
    releases = [release(n, age_h=40 - n) for n in range(1, 40)]
    before = kept(releases, keeping)
    from_the_future = [release(40, age_h=-24 * 365), release(41, age_h=-24 * 366)]
    after = kept(releases + from_the_future, keeping)
    assert after >= before
    assert 41 in after


@given(
    ages=st.lists(st.floats(-1000, 1000), min_size=1, max_size=30),
    lines=st.fixed_dictionaries(
        {name: st.integers(0, 4) for name in ("last", "hourly", "daily", "weekly", "best")}
        | {"within": st.floats(0, 1e6)}
    ),
    more=st.sampled_from(["last", "hourly", "daily", "weekly", "best"]),
)
def test_asking_for_more_never_keeps_less(ages: list[float], lines: dict[str, Any], more: str) -> None:
    releases = [release(n, age, content=n % 7, spans_sc_f=age) for n, age in enumerate(ages, 1)]
    live = releases[0].id
    before = kept(releases, keep(**lines), live_id=live)
    if any(lines.values()):  # nothing asked for means that nothing is deleted
        assert kept(releases, keep(**(lines | {more: lines[more] + 1})), live_id=live) >= before
    assert 1 in before


@given(
    st.lists(st.tuples(st.integers(-50, 400), st.integers(0, 12)), min_size=1, max_size=30),
    st.integers(1, 30),
    st.fixed_dictionaries(
        {name: st.integers(0, 4) for name in ("last", "hourly", "daily", "weekly")}
        | {"within": st.sampled_from([0, 3600, 86400])}
    ),
)
def test_older_releases_decide_nothing_about_newer_ones(
    ages: list[tuple[int, int]], newest: int, lines: dict[str, Any]
) -> None:
    releases = [release(len(ages) - n, age_h=age, content=c) for n, (age, c) in enumerate(ages)]
    part = releases[:newest]
    if part[0].created_at <= f"{NOW:%Y-%m-%dT%H:%M:%S.%f}Z":  # `list` looks at all otherwise
        whole = reasons(releases, keep(**lines))
        assert reasons(part, keep(**lines)) == {one.sequence: whole[one.sequence] for one in part}
