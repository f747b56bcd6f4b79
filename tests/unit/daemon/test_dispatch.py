"""The dispatcher's decisions, with a clock that is held and snapshots that end when told to."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from spancat_daemon.checkpoint.tree import Tree
from spancat_daemon.daemon.dispatch import (
    MANUAL_PATIENCE_S,
    PROBATION_LOOK_S,
    RETRY_FIRST_S,
    RETRY_LAST_S,
    TORN_AFTER_S,
    VERIFYING_PER_WORKER,
    Dispatcher,
)
from spancat_daemon.deploying.deployment import Result

if TYPE_CHECKING:
    from spancat_daemon.deploying.deployment import Deployment
    from spancat_daemon.observe.logs import Logger

TREE = Tree(files=(), directories=())
PUBLISHED = Result("published", "1")
TORN = Result("unsettled", None, "torn", kind="torn", tree=TREE)
BUSY = Result("unsettled", None, "busy", kind="busy", retry_after_s=0.25, tree=TREE)
GONE = Result("vanished", None, "gone")
FAILED = Result("failed", None, "disk full")


@dataclass
class Held:
    """A deployment whose snapshots end with what the test puts into `results`."""

    rule: str
    asked: queue.SimpleQueue[tuple[str, bool]] = field(default_factory=queue.SimpleQueue)
    results: queue.SimpleQueue[Result | Exception] = field(default_factory=queue.SimpleQueue)
    given_up: bool = False
    verifying: bool = False
    on_probation: str | None = None

    @property
    def target(self) -> Any:
        return SimpleNamespace(rule=self.rule, source=Path("/runs") / self.rule)

    def snapshot(self, trigger: str, *, force: bool, since_s: float) -> Result:
        assert since_s >= 0
        self.asked.put((trigger, force))
        result = self.results.get(timeout=120)
        if isinstance(result, Exception):
            raise result
        return result

    def abandon(self) -> None:
        self.given_up = True
        self.results.put(Result("abandoned", None))


class Scene:
    def __init__(self, *rules: str, workers: int = 2) -> None:
        self.now = 100.0
        self.woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.held = {rule: Held(rule) for rule in rules}
        self.dispatcher = Dispatcher(
            workers=workers,
            monotonic=lambda: self.now,
            wake=lambda: self.woken.put(None),
            log=cast("Logger", self),
        )
        self.dispatcher.keep(cast("list[Deployment]", list(self.held.values())))

    def bind(self, **_fields: Any) -> Scene:
        return self

    def _log(self, event: str, **fields: Any) -> None:
        self.logged.append((event, fields))

    info = warning = error = exception = _log

    def flag(self, rule: str = "a", trigger: Any = "change", *, forced: bool = False) -> Any:
        waiter = self.dispatcher.flag(rule, trigger, forced=forced)
        self.woken.get(timeout=120)
        return waiter

    def runs(self, rule: str = "a") -> tuple[str, bool]:
        """The snapshot that was started."""
        self.dispatcher.turn()
        return self.held[rule].asked.get(timeout=120)

    def ends(self, result: Result | Exception, rule: str = "a") -> None:
        self.held[rule].results.put(result)
        self.woken.get(timeout=120)

    def rests(self, rule: str = "a") -> float | None:
        """Asserts that nothing is started; returns in how many seconds something will be."""
        due_s = self.dispatcher.turn()
        assert self.held[rule].asked.empty()
        assert self.dispatcher.status(rule).state != "snapshot"
        return due_s


@pytest.fixture
def scene() -> Any:
    scene = Scene("a", "b", "c")
    yield scene
    scene.dispatcher.stop(10)


def test_flags_that_come_together_are_one_snapshot_under_the_weightiest_name(scene: Scene) -> None:
    scene.flag(trigger="change")
    scene.flag(trigger="schedule", forced=True)
    scene.flag(trigger="change")
    assert scene.runs() == ("schedule", True)
    scene.ends(PUBLISHED)
    assert scene.rests() is None


def test_a_change_during_a_snapshot_is_looked_at_after_it(scene: Scene) -> None:
    scene.flag()
    scene.runs()
    scene.flag()
    scene.dispatcher.turn()
    assert scene.held["a"].asked.empty()
    scene.ends(PUBLISHED)
    assert scene.runs() == ("change", False)
    scene.ends(PUBLISHED)


def test_no_more_snapshots_at_once_than_workers(scene: Scene) -> None:
    for rule in ("a", "b", "c"):
        scene.flag(rule)
    scene.runs("a")
    scene.runs("b")
    assert scene.held["c"].asked.empty()
    scene.ends(PUBLISHED, "a")
    assert scene.runs("c") == ("change", False)
    scene.ends(PUBLISHED, "b")
    scene.ends(PUBLISHED, "c")


def test_a_snapshot_that_is_verified_takes_no_worker_but_there_is_an_end() -> None:
    rules = [f"v{number}" for number in range(VERIFYING_PER_WORKER + 2)]
    scene = Scene(*rules, workers=1)
    for rule in rules:
        scene.flag(rule)
    for rule in rules[:-1]:
        assert scene.runs(rule) == ("change", False)
        scene.rests(rules[-1])
        scene.held[rule].verifying = True
    assert scene.dispatcher.status(rules[0]).state == "verifying"
    scene.rests(rules[-1])  # it would only wait for a child, with a staged copy on the disk
    scene.ends(PUBLISHED, rules[0])
    assert scene.runs(rules[-1]) == ("change", False)
    for rule in rules[1:]:
        scene.ends(PUBLISHED, rule)


def test_what_waits_for_a_probation_is_asked_for_again(scene: Scene) -> None:
    scene.flag()
    scene.runs()
    scene.held["a"].on_probation = "1"
    scene.ends(Result("probation", "1", "1 is on probation"))
    assert scene.rests() == PROBATION_LOOK_S
    assert scene.dispatcher.status("a").state == "probation"
    scene.now += PROBATION_LOOK_S
    scene.held["a"].on_probation = None
    assert scene.runs() == ("change", False)
    scene.ends(PUBLISHED)


def test_a_failure_is_tried_again_later_and_later(scene: Scene) -> None:
    scene.flag()
    delay_s = RETRY_FIRST_S
    for _ in range(8):
        scene.runs()
        scene.ends(FAILED)
        scene.flag()  # a change does not hurry a full disk
        assert scene.rests() == delay_s
        scene.now += delay_s
        delay_s = min(delay_s * 2, RETRY_LAST_S)
    scene.runs()
    scene.ends(PUBLISHED)
    scene.flag()
    scene.runs()
    scene.ends(FAILED)
    assert scene.rests() == RETRY_FIRST_S


def test_a_change_during_a_failing_snapshot_does_not_hurry_the_next_either(scene: Scene) -> None:
    scene.flag()
    scene.runs()
    scene.flag()
    scene.ends(FAILED)
    assert scene.rests() == RETRY_FIRST_S


def test_who_asks_by_hand_does_not_wait_for_the_next_try(scene: Scene) -> None:
    scene.flag()
    scene.runs()
    scene.ends(FAILED)
    waiter = scene.flag(trigger="manual")
    assert scene.runs() == ("manual", False)
    scene.ends(FAILED)
    assert waiter.result(0) is FAILED


def test_torn_is_said_once_and_only_after_a_while(scene: Scene) -> None:
    scene.flag()
    scene.runs()
    scene.ends(TORN)
    assert scene.rests() == TORN_AFTER_S
    assert not scene.logged
    scene.now += TORN_AFTER_S
    scene.runs()
    scene.ends(TORN)
    assert [event for event, _ in scene.logged] == ["checkpoint.torn"]
    assert scene.rests() is None
    scene.flag()
    scene.runs()
    scene.ends(TORN)
    assert scene.rests() is None
    assert len(scene.logged) == 1


def test_a_trainer_at_work_is_not_reported(scene: Scene) -> None:
    scene.flag()
    for number in range(5):
        scene.runs()
        fresh = Tree(files=(), directories=(str(number),))
        scene.ends(Result("unsettled", None, "torn", kind="torn", tree=fresh))
        scene.now += TORN_AFTER_S - 1
        scene.flag()
    assert not scene.logged


def test_a_forced_checkpoint_that_finds_a_torn_one_keeps_its_force(scene: Scene) -> None:
    scene.flag(trigger="schedule", forced=True)
    scene.runs()
    scene.ends(TORN)
    scene.flag()
    assert scene.runs() == ("schedule", True)
    scene.ends(PUBLISHED)
    scene.flag()
    assert scene.runs() == ("change", False)
    scene.ends(PUBLISHED)


def test_busy_is_looked_at_again_when_it_says(scene: Scene) -> None:
    scene.flag()
    scene.runs()
    scene.ends(BUSY)
    assert scene.rests() == 0.25
    scene.now += 0.25
    assert scene.runs() == ("change", False)
    scene.ends(PUBLISHED)


def test_gone_is_said_after_a_while_if_it_was_there(scene: Scene) -> None:
    scene.flag()
    scene.runs()
    scene.ends(GONE)
    assert scene.rests() is None  # it never was there
    scene.flag()
    scene.runs()
    scene.ends(PUBLISHED)
    scene.flag()
    scene.runs()
    scene.ends(GONE)
    assert scene.rests() == TORN_AFTER_S
    scene.now += TORN_AFTER_S
    scene.runs()
    scene.ends(GONE)
    assert [event for event, _ in scene.logged] == ["checkpoint.vanished"]
    assert scene.rests() is None


def test_who_waits_is_told_when_patience_ends(scene: Scene) -> None:
    waiter = scene.flag(trigger="manual")
    scene.runs()
    scene.ends(TORN)
    assert not waiter.done()
    scene.now += MANUAL_PATIENCE_S
    scene.runs()
    scene.ends(TORN)
    assert waiter.result(0) is TORN


def test_a_defect_ends_neither_worker_nor_daemon(scene: Scene) -> None:
    scene.flag()
    scene.runs()
    scene.ends(RuntimeError("a defect"))
    assert [event for event, _ in scene.logged] == ["snapshot.failed"]
    scene.now += RETRY_FIRST_S
    assert scene.runs() == ("change", False)
    scene.ends(PUBLISHED)


def test_stopping_answers_everybody_and_starts_nothing(scene: Scene) -> None:
    scene.flag()
    scene.runs()
    waiter = scene.flag(trigger="manual")
    assert scene.dispatcher.stop(10) == ()
    assert scene.held["a"].given_up
    assert waiter.result(0).status == "abandoned"
    assert scene.dispatcher.flag("a", "manual").result(0).status == "abandoned"


def test_a_rule_that_is_dropped_answers_who_waits_for_it(scene: Scene) -> None:
    waiter = scene.flag(trigger="manual")
    scene.dispatcher.keep([])
    assert waiter.result(0).status == "vanished"


@pytest.mark.parametrize(
    "result", [TORN, BUSY, PUBLISHED, FAILED], ids=lambda result: result.status + result.kind
)
def test_a_rule_that_is_dropped_in_the_midst_of_a_snapshot_answers_too(scene: Scene, result: Result) -> None:
    waiter = scene.flag(trigger="manual")
    scene.runs()
    scene.dispatcher.keep([])
    scene.ends(result)
    assert waiter.result(0) is result
    assert not scene.logged


def test_what_forces_names_the_snapshot(scene: Scene) -> None:
    """A command without --force must not lend its name to a schedule's force, which does not go as far."""
    scene.flag(trigger="schedule", forced=True)
    waiter = scene.flag(trigger="manual")
    assert scene.runs() == ("schedule", True)
    scene.ends(PUBLISHED)
    assert waiter.result(0) is PUBLISHED
    scene.flag(trigger="schedule", forced=True)
    scene.flag(trigger="manual", forced=True)
    assert scene.runs() == ("manual", True)
    scene.ends(PUBLISHED)


def test_without_a_thread_a_snapshot_is_tried_again_later(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    scene.flag(trigger="schedule", forced=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert scene.dispatcher.turn() == RETRY_FIRST_S
    assert scene.logged[0][0] == "snapshot.failed"
    assert scene.dispatcher.status("a").state != "snapshot"
    scene.now += RETRY_FIRST_S
    assert scene.runs() == ("schedule", True)
    scene.ends(PUBLISHED)
