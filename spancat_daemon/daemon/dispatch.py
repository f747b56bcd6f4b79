"""Turns flags into work: at most one snapshot per target, and not many more at once than there are workers.

Triggers of any thread only raise a flag (:meth:`Dispatcher.flag`); the service's loop calls
:meth:`Dispatcher.turn`, which starts what is due. A target that was flagged while its snapshot was under way
is looked at again afterwards, so no change is missed and none is waited for.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from spancat_daemon.daemon.lanes import Agenda, Flag, Lane
from spancat_daemon.deploying.chronicle import QUIET_TRIGGERS
from spancat_daemon.deploying.deployment import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spancat_daemon.daemon.holdings import Held
    from spancat_daemon.deploying.snapshot import Trigger
    from spancat_daemon.observe.logs import Logger

TORN_AFTER_S = 10.0
"""A checkpoint that stays torn, incomplete or absent for this long is reported: its trainer is not at work.

`spacy train` itself takes model-best away for moments, whenever it replaces it.
"""

MANUAL_PATIENCE_S = 10.0
"""How long a snapshot that somebody waits for may find the checkpoint unsettled before it says so."""

VERIFYING_PER_WORKER = 4
"""A snapshot that is being verified is a child's work and takes no worker; so many of them, for each worker,
may be under way or wait for a child before further snapshots wait."""

PROBATION_LOOK_S = 1.0
"""How often a snapshot that waits for the end of a probation asks for it, besides being told."""

RETRY_FIRST_S = 5.0
RETRY_LAST_S = 300.0
"""A failed snapshot (full disk, unwritable folder) is tried again after a delay that doubles up to this."""


STOPPING = Result("abandoned", None, "the daemon stops")


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """A target's state, for ``status``; times are monotonic, `waiting` counts who waits for a snapshot."""

    state: str
    last_reason: str = ""
    failures: int = 0
    last_success_s: float | None = None
    last_failure_s: float | None = None
    waiting: int = 0


@dataclass(slots=True)
class Dispatcher:
    """Runs the snapshots of all targets; :meth:`turn` and :meth:`keep` belong to the service's thread.

    Attributes:
        workers: snapshots under way at once.
        monotonic: seconds that never step.
        wake: makes the service's loop call :meth:`turn` soon; called from any thread.
        log: where a torn or vanished checkpoint is reported.
        ended: how many snapshots came to their end, whatever became of them.
    """

    workers: int
    monotonic: Callable[[], float]
    wake: Callable[[], None]
    log: Logger
    ended: int = 0
    _lanes: dict[str, Lane] = field(default_factory=dict)
    _agenda: Agenda = field(default_factory=Agenda)
    _running: set[Lane] = field(default_factory=set)
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def keep(self, deployments: Iterable[Held]) -> None:
        """Makes `deployments` the ones that are served; others' flags are dropped, their waiters told."""
        wanted = {deployment.target.rule: deployment for deployment in deployments}
        with self._mutex:
            for rule in self._lanes.keys() - wanted.keys():
                lane = self._lanes.pop(rule)
                lane.served = False
                self._agenda.leave(lane)
                if lane.flag is not None:
                    lane.flag.answer(Result("vanished", None, "the rule is not watched any more"))
            for rule, deployment in wanted.items():
                if rule in self._lanes:
                    self._lanes[rule].deployment = deployment
                else:
                    self._lanes[rule] = Lane(deployment)

    def flag(
        self, rule: str, trigger: Trigger, *, forced: bool = False, routine: bool = False
    ) -> Future[Result]:
        """Asks for a snapshot and returns at once; the future gets its result. Any thread may call it.

        Args:
            rule: of which target.
            trigger: why.
            forced: also if nothing changed.
            routine: whether all are asked, so that what is asked for a reason of its own goes first.
        """
        waiter: Future[Result] = Future()
        asked = Flag(trigger, forced, self.monotonic(), (waiter,) if trigger == "manual" else (), routine)
        with self._mutex:
            lane = self._lanes.get(rule)
            if self._stopped or lane is None:
                gone = Result("vanished", None, f"no such rule is watched: {rule}")
                waiter.set_result(STOPPING if self._stopped else gone)
                return waiter
            before = (lane.due_s, lane.flag is not None and not lane.flag.routine)
            lane.flag = lane.flag.join(asked) if lane.flag else asked
            if trigger != "change" or lane.failures == 0:
                lane.due_s = None
            if lane.running is None and (not lane.ticket or before != (lane.due_s, not lane.flag.routine)):
                self._agenda.enter(lane)
        self.wake()
        return waiter

    def mended(self, rule: str) -> None:
        """Takes note that somebody made live what a snapshot could not."""
        with self._mutex:
            lane = self._lanes.get(rule)
            if lane is not None:
                lane.last_reason, lane.last_success_s = "", self.monotonic()

    def turn(self) -> float | None:
        """Starts what is due; returns in how many seconds something will be, None if nothing is foreseen."""
        now = self.monotonic()
        with self._mutex:
            while (lane := self._next(now)) is not None:
                self._begin(lane, now)
            soonest = self._agenda.soonest_s()
        return None if soonest is None else max(soonest - now, 0.0)

    @property
    def at_rest(self) -> bool:
        """Whether no snapshot is under way."""
        return not self._running

    def status(self, rule: str) -> LaneStatus:
        """What a target is doing."""
        with self._mutex:
            lane = self._lanes.get(rule)
            if lane is None:
                return LaneStatus("not watched")
            waiting = sum(len(flag.waiters) for flag in (lane.flag, lane.running) if flag)
            return LaneStatus(
                lane.state(),
                lane.last_reason,
                lane.failures,
                lane.last_success_s,
                lane.last_failure_s,
                waiting,
            )

    def stop(self, timeout_s: float) -> tuple[str, ...]:
        """Ends the work under way and answers everybody who waits; nothing is started after it.

        Returns:
            The rules whose snapshot had not given up after `timeout_s`.
        """
        with self._mutex:
            self._stopped = True
            lanes = dict(self._lanes)
            for lane in lanes.values():
                lane.deployment.abandon()
        deadline = self.monotonic() + timeout_s
        pause = threading.Event()
        while self._running and self.monotonic() < deadline:
            pause.wait(0.01)
        with self._mutex:
            for lane in lanes.values():
                for flag in (lane.flag, lane.running):
                    if flag is not None:
                        flag.answer(STOPPING)
            return tuple(rule for rule, lane in lanes.items() if lane.running is not None)

    def resize(self, workers: int) -> None:
        """Changes how many snapshots may be under way at once; those under way go on."""
        self.workers = workers

    def _next(self, now: float) -> Lane | None:
        """Takes the next lane that is due, if there is room for it; the mutex is held."""
        if self._stopped or len(self._running) >= (1 + VERIFYING_PER_WORKER) * self.workers:
            return None
        if sum(not lane.deployment.verifying for lane in self._running) >= self.workers:
            return None
        lane = self._agenda.next(now)
        if lane is not None:
            lane.running, lane.flag, lane.due_s = lane.flag, None, None
            self._running.add(lane)
        return lane

    def _begin(self, lane: Lane, now: float) -> None:
        """Gives it a thread; if there is none to be had, it is tried again later."""
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._run, args=(lane,), name="snapshot", daemon=True).start()
            return
        reason = "the system gives no more threads"
        self.log.error("snapshot.failed", rule=lane.deployment.target.rule, reason=reason)
        self._running.discard(lane)
        lane.running, lane.flag, lane.due_s = None, lane.running, now + RETRY_FIRST_S
        self._agenda.enter(lane)

    def _run(self, lane: Lane) -> None:
        """Takes a lane's snapshot, then those that are due: a thread costs more than most looks."""
        following: Lane | None = lane
        while following is not None:
            following = self._take(following)
            self.wake()

    def _take(self, lane: Lane) -> Lane | None:
        """Takes one snapshot; returns the lane that is next, if there is one and room for it."""
        flag = cast("Flag", lane.running)
        try:
            result = lane.deployment.snapshot(flag.trigger, force=flag.forced, since_s=flag.since_s)
        except Exception as error:  # a defect here must not end the worker, nor the daemon
            self.log.exception("snapshot.failed", rule=lane.deployment.target.rule, reason=repr(error))
            result = Result("failed", None, repr(error))
        with self._mutex:
            lane.running = None
            self._running.discard(lane)
            self.ended += 1
            if lane.served:
                self._settle_up(lane, flag, result)
                self._agenda.enter(lane)
            else:  # its rule was dropped meanwhile: nobody would look again
                flag.answer(result)
            return self._next(self.monotonic())

    def _settle_up(self, lane: Lane, flag: Flag, result: Result) -> None:
        now = self.monotonic()
        lane.failures = lane.failures + 1 if result.status == "failed" else 0
        if result.status == "probation":
            self._wait_for_probation(lane, flag, result, now)
            return
        if result.status in {"unsettled", "vanished"}:
            self._wait_for_trainer(lane, flag, result, now)
            return
        lane.unsettled, lane.reported, lane.seen = None, False, True
        if result.status in {"published", "unchanged"}:
            lane.last_reason, lane.last_success_s = "", now
        else:
            lane.last_reason, lane.last_failure_s = result.reason, now
        flag.answer(result)
        if result.status == "failed":
            delay_s = min(RETRY_FIRST_S * 2 ** (lane.failures - 1), RETRY_LAST_S)
            due_s = now + delay_s
            self._again(lane, replace(flag, waiters=(), since_s=due_s), due_s)

    def _wait_for_probation(self, lane: Lane, flag: Flag, result: Result, now: float) -> None:
        """Keeps the flag up until it is known whether what is live does well."""
        lane.last_reason = result.reason
        if flag.waiters and now - flag.since_s >= MANUAL_PATIENCE_S:
            flag.answer(result)
            flag = replace(flag, waiters=())
        self._again(lane, flag, now + PROBATION_LOOK_S)

    def _wait_for_trainer(self, lane: Lane, flag: Flag, result: Result, now: float) -> None:
        """Keeps the flag up until the checkpoint settles; a change that comes meanwhile has its own."""
        if result.status == "vanished" and not lane.seen:
            if flag.trigger not in QUIET_TRIGGERS:
                self._report(lane, result)
            flag.answer(result)
            return
        lane.seen = True
        if lane.unsettled is None or lane.unsettled[0] != result.tree:
            lane.unsettled, lane.reported = (result.tree, now), False
        since_s = lane.unsettled[1]
        if result.kind != "busy" and not lane.reported and now - since_s >= TORN_AFTER_S:
            lane.reported = True
            self._report(lane, result)
        if flag.waiters and now - flag.since_s >= MANUAL_PATIENCE_S:
            flag.answer(result)
            flag = replace(flag, waiters=())
        if result.status == "vanished" and lane.reported:
            lane.seen = False
            return
        due_s = _next_look_s(flag, result, now, report_s=None if lane.reported else since_s + TORN_AFTER_S)
        if due_s is not None:
            self._again(lane, replace(flag, since_s=now) if lane.reported else flag, due_s)

    def _report(self, lane: Lane, result: Result) -> None:
        """Says that no trainer seems to be at work on a checkpoint that can't be deployed as it is."""
        lane.last_reason = result.reason
        log = self.log.bind(rule=lane.deployment.target.rule, source=lane.deployment.target.source)
        if result.status == "vanished":
            log.info("checkpoint.vanished", hint="what is live stays; it is deployed when it comes back")
        else:
            log.warning(
                "checkpoint.torn",
                kind=result.kind,
                reason=result.reason,
                hint="its trainer stopped in the middle of a save; the next whole save is deployed",
            )

    @staticmethod
    def _again(lane: Lane, flag: Flag, due_s: float) -> None:
        # What was flagged meanwhile is not made to wait, unless it is a change, which can't mend a failure.
        if lane.flag is None or (lane.failures and lane.flag.trigger == "change"):
            lane.due_s = due_s
        lane.flag = lane.flag.join(flag) if lane.flag else flag


def _next_look_s(flag: Flag, result: Result, now: float, *, report_s: float | None) -> float | None:
    """When to look again at an unsettled checkpoint that nobody touches; None: there is no need to."""
    if result.kind == "busy":
        return now + (result.retry_after_s or 0.01)
    if flag.waiters:
        return now + 0.1
    if report_s is not None:
        return report_s
    return now + RETRY_LAST_S if flag.forced or flag.trigger not in QUIET_TRIGGERS else None
