"""Each target's queue of length one, and which of them is to be looked at next.

With thousands of targets nearly all of them rest nearly always, so nothing here costs anything for one that
does: a lane is touched when something is asked of it, when it falls due and when its snapshot ends.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.daemon.holdings import Held
    from spancat_daemon.deploying.deployment import Result
    from spancat_daemon.deploying.snapshot import Trigger

RANK: dict[Trigger, int] = {"startup": 0, "change": 1, "schedule": 2, "signal": 3, "manual": 4}
"""Which trigger names a snapshot that several asked for."""


@dataclass(slots=True)
class Flag:
    """What has asked for a snapshot since the last one began.

    Attributes:
        trigger: why.
        forced: also if nothing changed.
        since_s: when it was asked first (monotonic).
        waiters: who waits for what comes of it.
        routine: all are asked, at the start or by the reconciling scan: it gives way to what happened.
    """

    trigger: Trigger
    forced: bool
    since_s: float
    waiters: tuple[Future[Result], ...] = ()
    routine: bool = False

    def join(self, other: Flag) -> Flag:
        """One flag that stands for both; what forces names it, for not every trigger's force goes as far."""
        first = max(self, other, key=lambda flag: (flag.forced, RANK[flag.trigger]))
        return Flag(
            first.trigger,
            first.forced,
            min(self.since_s, other.since_s),
            self.waiters + other.waiters,
            self.routine and other.routine,
        )

    def answer(self, result: Result) -> None:
        """Tells those who wait."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(result)


@dataclass(slots=True, eq=False)
class Lane:
    """What is asked of one target, and what came of it.

    Attributes:
        deployment: whose.
        flag: what is asked for; None: nothing.
        running: what the snapshot under way was asked for by.
        due_s: not before then (monotonic); None: at once.
        failures: so many failed in a row.
        unsettled: the stamps of an unsettled checkpoint, and since when it has them.
        reported: whether that was logged.
        seen: whether there was a checkpoint at the last look.
        served: whether the target is watched still.
        ticket: its place in the agenda; 0: it has none.
    """

    deployment: Held
    flag: Flag | None = None
    running: Flag | None = None
    due_s: float | None = None
    failures: int = 0
    unsettled: tuple[Tree | None, float] | None = None
    reported: bool = False
    seen: bool = False
    served: bool = True
    last_reason: str = ""
    last_success_s: float | None = None
    last_failure_s: float | None = None
    ticket: int = 0

    def state(self) -> str:
        """One word for ``status``."""
        if self.running is not None:
            return "verifying" if self.deployment.verifying else "snapshot"
        if self.deployment.on_probation is not None:
            return "probation"
        if self.flag is not None and self.due_s is None:
            return "queued"
        if self.failures:
            return "retrying"
        if not self.seen or (self.unsettled is not None and self.unsettled[0] is None):
            return "absent"
        return "idle" if self.unsettled is None else "unsettled"


class Agenda:
    """The lanes that something is asked of, in the order in which they get their turn.

    What happened comes before what is routine, and first come is first served. A lane whose place changes
    leaves its old entry behind, which counts no more: only that with its ticket does.
    """

    def __init__(self) -> None:
        self._tickets = itertools.count(1)
        self._urgent: deque[tuple[int, Lane]] = deque()
        self._routine: deque[tuple[int, Lane]] = deque()
        self._later: list[tuple[float, int, Lane]] = []
        self._stale = 0

    def enter(self, lane: Lane) -> None:
        """Gives a lane the place that its flag and `due_s` ask for; one that had one loses it."""
        self.leave(lane)
        if lane.flag is None:
            return
        lane.ticket = next(self._tickets)
        if lane.due_s is not None:
            heapq.heappush(self._later, (lane.due_s, lane.ticket, lane))
        else:
            (self._routine if lane.flag.routine else self._urgent).append((lane.ticket, lane))

    def leave(self, lane: Lane) -> None:
        """Takes its place from a lane."""
        if lane.ticket:
            lane.ticket = 0
            self._stale += 1
            if self._stale > 64 and self._stale > len(self) // 2:
                self._sweep()

    def next(self, now_s: float) -> Lane | None:
        """The lane whose turn it is, which has no place from now on; None: no lane is due."""
        while self._later and self._later[0][0] <= now_s:
            _due_s, ticket, lane = heapq.heappop(self._later)
            if self._counts(ticket, lane) and lane.flag is not None:
                (self._routine if lane.flag.routine else self._urgent).append((ticket, lane))
        for queue in (self._urgent, self._routine):
            while queue:
                ticket, lane = queue.popleft()
                if self._counts(ticket, lane):
                    lane.ticket = 0
                    return lane
        return None

    def soonest_s(self) -> float | None:
        """When a lane that is not due yet will be (monotonic); None: there is none."""
        while self._later:
            due_s, ticket, lane = self._later[0]
            if lane.ticket == ticket:
                return due_s
            heapq.heappop(self._later)
            self._stale -= 1
        return None

    def _counts(self, ticket: int, lane: Lane) -> bool:
        if lane.ticket == ticket:
            return True
        self._stale -= 1
        return False

    def __len__(self) -> int:
        """How many entries it holds, those included that count no more."""
        return len(self._urgent) + len(self._routine) + len(self._later)

    def _sweep(self) -> None:
        """Forgets what counts no more: a lane flagged and put off again and again must not pile up."""

        def counting(queue: deque[tuple[int, Lane]]) -> Iterator[tuple[int, Lane]]:
            return ((ticket, lane) for ticket, lane in queue if lane.ticket == ticket)

        self._urgent = deque(counting(self._urgent))
        self._routine = deque(counting(self._routine))
        self._later = [entry for entry in self._later if entry[2].ticket == entry[1]]
        heapq.heapify(self._later)
        self._stale = 0
