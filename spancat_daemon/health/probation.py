"""Watching whether all is well after a swap, until that is clear or its time is over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from spancat_daemon.after.outcome import STOPPED
from spancat_daemon.health.check import check

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from spancat_daemon.after.swap import Swap
    from spancat_daemon.config.model import Health

Outcome: TypeAlias = Literal["well", "unwell", "stopped"]


class Observed(NamedTuple):
    """How a probation ended.

    Attributes:
        outcome: ``stopped``: nobody waits for it any more, and nothing is known yet.
        reason: why not well; empty if well.
        checks: how many were made.
    """

    outcome: Outcome
    reason: str
    checks: int


def observe(
    health: Health,
    swap: Swap,
    *,
    deadline_s: float,
    stopping: threading.Event,
    monotonic: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] | None = None,
) -> Observed:
    """Check until all was well ``health.passes`` times in a row, or the deadline has come.

    The first check is made at once, and always, also after the deadline: of what nobody looked at nobody can
    say that it is not well. None gets longer than the deadline leaves it.

    Args:
        health: whom to ask, how often, and how many times all must be well.
        swap: what it is about.
        deadline_s: when the time is over, by ``monotonic``.
        stopping: set when the daemon stops.
        monotonic: the clock.
        pause: waits between two checks, so many seconds or until the daemon stops.
    """
    pause = pause or stopping.wait
    checks = passed = 0
    reason = ""
    while not stopping.is_set():
        left_s = deadline_s - monotonic()
        timeout_s = min(health.timeout, left_s) if left_s > 0 else health.timeout
        reason = check(health, swap, stopping=stopping, timeout_s=timeout_s)
        if stopping.is_set() and reason:
            break
        checks += 1
        passed = 0 if reason else passed + 1
        if passed >= health.passes:
            return Observed("well", "", checks)
        if monotonic() + health.every >= deadline_s:
            reason = reason or f"well {passed} times in a row, not {health.passes}"
            return Observed("unwell", reason, checks)
        pause(health.every)
    return Observed("stopped", STOPPED, checks)
