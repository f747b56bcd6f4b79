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
from typing import TYPE_CHECKING

from spancat_daemon.deploying.chronicle import QUIET_TRIGGERS
from spancat_daemon.deploying.deployment import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.deploying.deployment import Deployment
    from spancat_daemon.deploying.snapshot import Trigger
    from spancat_daemon.observe.logs import Logger

RANK: dict[Trigger, int] = {"startup": 0, "change": 1, "schedule": 2, "signal": 3, "manual": 4}
"""Which trigger names a snapshot that several asked for."""

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


@dataclass(slots=True)
class Flag:
    """What has asked for a snapshot since the last one began."""

    trigger: Trigger
    forced: bool
    since_s: float
    waiters: tuple[Future[Result], ...] = ()

    def join(self, other: Flag) -> Flag:
        """One flag that stands for both; what forces names it, for not every trigger's force goes as far."""
        first = max(self, other, key=lambda flag: (flag.forced, RANK[flag.trigger]))
        return Flag(
            first.trigger,
            first.forced,
            min(self.since_s, other.since_s),
            self.waiters + other.waiters,
        )


@dataclass(slots=True)
class _Lane:
    """One target's queue of length one."""

    deployment: Deployment
    flag: Flag | None = None
    running: Flag | None = None
    due_s: float | None = None
    failures: int = 0
    unsettled: tuple[Tree | None, float] | None = None
    reported: bool = False
    seen: bool = False
    last_reason: str = ""
    last_success_s: float | None = None
    last_failure_s: float | None = None

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
    """

    workers: int
    monotonic: Callable[[], float]
    wake: Callable[[], None]
    log: Logger
    _lanes: dict[str, _Lane] = field(default_factory=dict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def keep(self, deployments: Iterable[Deployment]) -> None:
        """Makes `deployments` the ones that are served; others' flags are dropped, their waiters told."""
        wanted = {deployment.target.rule: deployment for deployment in deployments}
        with self._mutex:
            for rule in self._lanes.keys() - wanted.keys():
                lane = self._lanes.pop(rule)
                if lane.flag is not None:
                    _answer(lane.flag, Result("vanished", None, "the rule is not watched any more"))
            for rule, deployment in wanted.items():
                lane = self._lanes.setdefault(rule, _Lane(deployment))
                lane.deployment = deployment

    def flag(self, rule: str, trigger: Trigger, *, forced: bool = False) -> Future[Result]:
        """Asks for a snapshot and returns at once; the future gets its result. Any thread may call it."""
        waiter: Future[Result] = Future()
        asked = Flag(trigger, forced, self.monotonic(), (waiter,) if trigger == "manual" else ())
        with self._mutex:
            lane = self._lanes.get(rule)
            if self._stopped or lane is None:
                gone = Result("vanished", None, f"no such rule is watched: {rule}")
                waiter.set_result(STOPPING if self._stopped else gone)
                return waiter
            lane.flag = lane.flag.join(asked) if lane.flag else asked
            if trigger != "change" or lane.failures == 0:
                lane.due_s = None
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
        soonest: float | None = None
        with self._mutex:
            running = [lane for lane in self._lanes.values() if lane.running is not None]
            under_way = sum(not lane.deployment.verifying for lane in running)
            room = (1 + VERIFYING_PER_WORKER) * self.workers - len(running)
            for lane in self._lanes.values():
                if lane.running is not None or lane.flag is None:
                    continue
                if lane.due_s is not None and lane.due_s > now:
                    soonest = lane.due_s if soonest is None else min(soonest, lane.due_s)
                elif under_way < self.workers and room > 0:
                    lane.running, lane.flag, lane.due_s = lane.flag, None, None
                    under_way, room = under_way + 1, room - 1
                    if not self._begin(lane, lane.running):
                        lane.running, lane.flag, lane.due_s = None, lane.running, now + RETRY_FIRST_S
                        soonest = lane.due_s if soonest is None else min(soonest, lane.due_s)
        return None if soonest is None else max(soonest - now, 0.0)

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
        while any(lane.running for lane in lanes.values()) and self.monotonic() < deadline:
            pause.wait(0.01)
        with self._mutex:
            for lane in lanes.values():
                for flag in (lane.flag, lane.running):
                    if flag is not None:
                        _answer(flag, STOPPING)
            return tuple(rule for rule, lane in lanes.items() if lane.running is not None)

    def resize(self, workers: int) -> None:
        """Changes how many snapshots may be under way at once; those under way go on."""
        self.workers = workers

    def _begin(self, lane: _Lane, flag: Flag) -> bool:
        """Gives it a thread; whether there was one to be had."""
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._run, args=(lane, flag), name="snapshot", daemon=True).start()
            return True
        reason = "the system gives no more threads"
        self.log.error("snapshot.failed", rule=lane.deployment.target.rule, reason=reason)
        return False

    def _run(self, lane: _Lane, flag: Flag) -> None:
        try:
            result = lane.deployment.snapshot(flag.trigger, force=flag.forced, since_s=flag.since_s)
        except Exception as error:  # a defect here must not end the worker, nor the daemon
            self.log.exception("snapshot.failed", rule=lane.deployment.target.rule, reason=repr(error))
            result = Result("failed", None, repr(error))
        with self._mutex:
            lane.running = None
            if any(lane is served for served in self._lanes.values()):
                self._settle_up(lane, flag, result)
            else:  # its rule was dropped meanwhile: nobody would look again
                _answer(flag, result)
        self.wake()

    def _settle_up(self, lane: _Lane, flag: Flag, result: Result) -> None:
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
        _answer(flag, result)
        if result.status == "failed":
            delay_s = min(RETRY_FIRST_S * 2 ** (lane.failures - 1), RETRY_LAST_S)
            due_s = now + delay_s
            self._again(lane, replace(flag, waiters=(), since_s=due_s), due_s)

    def _wait_for_probation(self, lane: _Lane, flag: Flag, result: Result, now: float) -> None:
        """Keeps the flag up until it is known whether what is live does well."""
        lane.last_reason = result.reason
        if flag.waiters and now - flag.since_s >= MANUAL_PATIENCE_S:
            _answer(flag, result)
            flag = replace(flag, waiters=())
        self._again(lane, flag, now + PROBATION_LOOK_S)

    def _wait_for_trainer(self, lane: _Lane, flag: Flag, result: Result, now: float) -> None:
        """Keeps the flag up until the checkpoint settles; a change that comes meanwhile has its own."""
        if result.status == "vanished" and not lane.seen:
            if flag.trigger not in QUIET_TRIGGERS:
                self._report(lane, result)
            _answer(flag, result)
            return
        lane.seen = True
        if lane.unsettled is None or lane.unsettled[0] != result.tree:
            lane.unsettled, lane.reported = (result.tree, now), False
        since_s = lane.unsettled[1]
        if result.kind != "busy" and not lane.reported and now - since_s >= TORN_AFTER_S:
            lane.reported = True
            self._report(lane, result)
        if flag.waiters and now - flag.since_s >= MANUAL_PATIENCE_S:
            _answer(flag, result)
            flag = replace(flag, waiters=())
        if result.status == "vanished" and lane.reported:
            lane.seen = False
            return
        due_s = _next_look_s(flag, result, now, report_s=None if lane.reported else since_s + TORN_AFTER_S)
        if due_s is not None:
            self._again(lane, replace(flag, since_s=now) if lane.reported else flag, due_s)

    def _report(self, lane: _Lane, result: Result) -> None:
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
    def _again(lane: _Lane, flag: Flag, due_s: float) -> None:
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


def _answer(flag: Flag, result: Result) -> None:
    for waiter in flag.waiters:
        if not waiter.done():
            waiter.set_result(result)
