"""Which releases stay, and why: pure decisions over what a folder holds.

Rules of the decision:

* The order of releases is their sequence; clocks jump.
* Releases with the same content count once, the newest stands for them. The others stay only for what they
  are themselves: live, the one before it, pinned, leased.
* ``hourly``, ``daily``, ``weekly`` (in UTC, weeks as ISO 8601 counts them): the newest release of each of the
  last *n* hours, days, weeks that have one. Releases that claim to be from the future have their own *n*:
  they can't push out the others, nor are they lost.
* ``within``: counted back from the newest release that is not from the future. So neither a pause in training
  nor a clock that ran ahead lets anything go.
* ``best``: the *n* with the highest value of the metric; of equals, the newer.

A clock that jumps can therefore only keep more, except while it is ahead *and* releases are made by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Generic

from spancat_daemon.release.survey import R

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from spancat_daemon.config.model import Keep

_BUCKETS: Final = (("hourly", "%Y-%m-%dT%H"), ("daily", "%Y-%m-%d"), ("weekly", "%G-W%V"))


@dataclass(frozen=True, slots=True)
class Verdict(Generic[R]):
    """What becomes of a release.

    Attributes:
        release: which.
        kept_because: reasons to keep it; empty if it goes.
    """

    release: R
    kept_because: tuple[str, ...]


def decide(  # each is a fact of its own, and all are named
    releases: Sequence[R],
    keep: Keep,
    *,
    live_id: str | None,
    previous_id: str | None,
    pinned: AbstractSet[str],
    leased: Callable[[R], bool] | AbstractSet[str],
    now: datetime,
) -> list[Verdict[R]]:
    """Decide about each release, newest first.

    Args:
        releases: all of a folder.
        keep: what the rule asks to keep; an empty one keeps everything.
        live_id: what is live.
        previous_id: what was live before it.
        pinned: ids that someone pinned.
        leased: ids that readers hold, or how to find out; asked only about releases that would go.
        now: an aware time.
    """
    newest_first = sorted(releases, key=lambda release: release.sequence, reverse=True)
    reasons: dict[str, list[str]] = {release.id: [] for release in newest_first}
    for release in newest_first:
        if release.id == live_id or release.live:
            reasons[release.id].append("live")
        if release.id == previous_id:
            reasons[release.id].append("previous")
        if release.id in pinned:
            reasons[release.id].append("pinned")
    if keep.empty:
        for found in reasons.values():
            found.append("retention is off")
    else:
        for release, reason in _wanted(newest_first, keep, now):
            reasons[release.id].append(reason)
    for release in newest_first:
        found = reasons[release.id]
        if not found and (leased(release) if callable(leased) else release.id in leased):
            found.append("leased")
    return [Verdict(release, tuple(reasons[release.id])) for release in newest_first]


def _wanted(newest_first: Sequence[R], keep: Keep, now: datetime) -> list[tuple[R, str]]:
    distinct = list({release.content_sha256: release for release in reversed(newest_first)}.values())
    distinct.sort(key=lambda release: release.sequence, reverse=True)
    wanted = [(release, f"last {keep.last}") for release in distinct[: keep.last]]
    if keep.within > 0 or keep.hourly or keep.daily or keep.weekly:
        wanted += _by_time(distinct, keep, now)
    return wanted + _best(distinct, keep)


def _by_time(distinct: Sequence[R], keep: Keep, now: datetime) -> list[tuple[R, str]]:
    created = {release.id: datetime.fromisoformat(release.created_at) for release in distinct}
    wanted: list[tuple[R, str]] = []
    if distinct and keep.within > 0:
        newest = next((time for time in created.values() if time <= now), now)
        since = newest - timedelta(seconds=keep.within)
        reason = f"within {_duration(keep.within)}"
        wanted += [(release, reason) for release in distinct if created[release.id] > since]
    for name, form in _BUCKETS:
        if count := getattr(keep, name):
            wanted += _newest_of_each(distinct, created, count, name, form, now)
    return wanted


def _newest_of_each(
    distinct: Sequence[R], created: Mapping[str, datetime], count: int, name: str, form: str, now: datetime
) -> list[tuple[R, str]]:
    wanted: list[tuple[R, str]] = []
    seen: set[str] = set()
    left = {False: count, True: count}
    for release in distinct:
        time = created[release.id]
        future = time > now
        if left[future] > 0 and (bucket := time.strftime(form)) not in seen:
            seen.add(bucket)
            left[future] -= 1
            wanted.append((release, f"{name} {bucket}"))
    return wanted


def _best(distinct: Sequence[R], keep: Keep) -> list[tuple[R, str]]:
    if not keep.best:
        return []
    scored = [
        (float(value), release)
        for release in distinct
        if isinstance(value := release.metrics.get(keep.metric), (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    ]
    scored.sort(key=lambda pair: (pair[0], pair[1].sequence), reverse=True)
    return [
        (release, f"best {place}: {value:.4g} {keep.metric}")
        for place, (value, release) in enumerate(scored[: keep.best], 1)
    ]


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:g}s"
