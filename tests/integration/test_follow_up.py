"""What follows a swap: in which order, what ends it, and what is made of one that was cut short."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, Any, Self, cast

import pytest

from spancat_daemon.config.expand import targets
from spancat_daemon.config.load import load
from spancat_daemon.deploying.chronicle import Chronicle
from spancat_daemon.deploying.follow_up import FollowUp
from spancat_daemon.deploying.holding import Holding
from spancat_daemon.deploying.swap_details import follow_up
from spancat_daemon.errors import UsageError
from spancat_daemon.release.durability import Durability
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.swap import make_live, publish
from tests.integration.release.fakes import now, stage
from tests.service import configure, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spancat_daemon.config.model import Watch
    from spancat_daemon.observe.logs import Logger
    from spancat_daemon.release.history import History, Record

HEALTH = '[watch.health]\ncommand = ["test", "-e", "{0}/well"]\nwithin = "10m"\n'
TOLD = '[[watch.after]]\ncommand = ["sh", "-c", "echo $SPANCAT_RELEASE >> {0}/told"]\n'
GATED = '[[watch.after]]\ncommand = ["sh", "-c", "while ! test -e {0}/go; do sleep 0.01; done"]\n'
OF_SWAPS = {"release.published", "release.overwrite", "release.rolled_back", "release.recovered"}
QUICKLY_S = 120.0  # far less than any probation here, far more than a busy machine takes


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def bind(self, **_fields: Any) -> Self:
        return self

    def info(self, event: str, **fields: Any) -> None:
        if event not in OF_SWAPS:
            self.events.append((event, fields))

    warning = error = info

    def names(self) -> list[str]:
        return [name for name, _ in self.events]


class Failing(Durability):
    """Makes no record of the history stay, when told so."""

    failing = False

    def sync_data(self, fd: int) -> None:
        if self.failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().sync_data(fd)


class Scene:
    """A folder that is held, and whatever follows its swaps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = Log()
        self.disk = Failing()
        (self.target,) = targets(load(configure(path)))
        self.folder = DeploymentFolder(self.target.deploy)
        self.gone_back: list[tuple[str, str]] = []
        self.obstacle: Exception | None = None
        self.start()

    def start(self) -> None:
        """Holds the folder, as a start does."""
        chronicle = Chronicle(
            self.target, self.folder, log=cast("Logger", self.log), has_logged=lambda _rule, _sha256: False
        )
        self.holding = Holding(
            self.folder, chronicle, holder="test", kind=lambda: "symlink", now=now, durability=self.disk
        )
        self.holding.take()
        self.follow_up = FollowUp(
            self.folder,
            self.holding,
            chronicle,
            go_back=self.go_back,
            wake=lambda: None,
            monotonic=time.monotonic,
        )

    def end(self) -> None:
        """Lets the folder go, as a stop does, and in time."""
        self.follow_up.stop()
        assert self.follow_up.wait(QUICKLY_S)
        self.holding.let_go()

    @property
    def history(self) -> History:
        return self.holding.history

    def watch(self, *parts: str, within: float = 600.0) -> Watch:
        more = "".join(part.format(self.path) for part in parts)
        (target,) = targets(load(configure(self.path, more=more)))
        if target.watch.health is None:
            return target.watch
        quick = target.watch.health.model_copy(update={"within": within, "every": 0.02})
        return target.watch.model_copy(update={"health": quick})

    def swap(self, watch: Watch) -> Record:
        with self.holding.alone:
            staged, manifest = stage(self.folder, self.folder.next_sequence(), b"%d" % self.history.seq)
            record = publish(
                self.folder,
                staged,
                manifest,
                kind="symlink",
                history=self.history,
                details={"rule": "products", **follow_up(watch)},
                monotonic=time.monotonic,
            ).record
            self.follow_up.begin(record, watch)
        return record

    def go_back(self, leaving: str, reason: str) -> None:
        if self.obstacle is not None:
            raise self.obstacle
        self.gone_back.append((leaving, reason))
        before = self.folder.previous(history=self.history)
        assert before is not None
        record = make_live(
            self.folder,
            before,
            kind="symlink",
            history=self.history,
            details={"follow_up": True},
            monotonic=time.monotonic,
        ).record
        self.follow_up.begin(record, self.watch())

    def told(self) -> list[str]:
        path = self.path / "told"
        return path.read_text().split() if path.exists() else []

    def concluded(self) -> list[dict[str, Any]]:
        return [dict(record.data) for record in self.history.records() if record.kind == "concluded"]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.end()
    assert not [thread for thread in threading.enumerate() if thread.name == "follow-up"]


def test_nobody_is_told_of_a_newer_release_before_the_older(scene: Scene) -> None:
    older = scene.swap(scene.watch(GATED, TOLD))
    newer = scene.swap(scene.watch(TOLD))
    time.sleep(0.1)
    assert scene.told() == []
    (scene.path / "go").touch()
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.told() == [newer.data["release"]], "what is left of the older one is of no use any more"
    assert scene.concluded() == [{"release": newer.data["release"], "of": newer.seq}]
    assert scene.log.names() == ["notification.done"] * 2
    assert scene.log.events[0][1]["release"] == older.data["release"]


def test_what_does_not_do_well_goes_back_and_that_is_not_on_probation(scene: Scene) -> None:
    (scene.path / "well").touch()
    watch = scene.watch(HEALTH, within=0.1)
    first = scene.swap(watch)
    assert scene.follow_up.wait(QUICKLY_S)
    (scene.path / "well").unlink()
    second = scene.swap(watch)
    assert scene.follow_up.on_probation == second.data["release"]
    assert scene.follow_up.wait(QUICKLY_S), "the way back is waited for, too"
    assert scene.follow_up.on_probation is None
    ((left, reason),) = scene.gone_back
    assert left == second.data["release"]
    assert "not well within 0.1 s" in reason
    assert scene.log.names() == ["health.passed", "health.failed"]
    assert scene.history.live == first.data["release"]
    assert [end["release"] for end in scene.concluded()] == [first.data["release"]] * 2
    assert scene.history.doubtful() == {second.data["release"]}


@pytest.mark.parametrize("tells", [False, True])
def test_a_newer_swap_ends_a_probation_also_if_nothing_follows_it(scene: Scene, *, tells: bool) -> None:
    older = scene.swap(scene.watch(HEALTH))
    assert scene.follow_up.on_probation == older.data["release"]
    newer = scene.swap(scene.watch(*[TOLD] if tells else []))
    assert scene.follow_up.on_probation is None
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.gone_back == []
    assert scene.told() == ([newer.data["release"]] if tells else [])
    assert scene.history.doubtful() == {older.data["release"]}


@pytest.mark.parametrize("well", [False, True])
def test_the_verdict_is_not_told_of_what_was_replaced_by_hand(scene: Scene, *, well: bool) -> None:
    first = scene.swap(scene.watch())
    if well:
        (scene.path / "well").touch()
    watch = scene.watch(GATED, HEALTH, within=0.05)
    second = scene.swap(watch)
    (scene.folder.path / "new").symlink_to(f"releases/{first.data['release']}")
    (scene.folder.path / "new").rename(scene.folder.current)
    (scene.path / "go").touch()
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.gone_back == []
    assert not {"health.passed", "health.failed", "release.rollback_failed"} & set(scene.log.names())
    assert scene.concluded() == []
    assert scene.history.live == first.data["release"] != second.data["release"]


def test_a_stop_that_meets_a_beginning_is_not_held_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping: list[threading.Thread] = []
    live = scene.folder.live

    def stop_now() -> Any:
        stopping.append(threading.Thread(target=scene.follow_up.stop))
        stopping[0].start()
        stopping[0].join(0.2)
        return live()

    with monkeypatch.context() as patch, scene.holding.alone:
        watch = scene.watch(HEALTH)
        staged, manifest = stage(scene.folder, 1, b"one")
        record = publish(
            scene.folder,
            staged,
            manifest,
            kind="symlink",
            history=scene.history,
            details=follow_up(watch),
            monotonic=time.monotonic,
        ).record
        patch.setattr(scene.folder, "live", stop_now)
        scene.follow_up.begin(record, watch)
    assert scene.follow_up.wait(QUICKLY_S)
    stopping[0].join(QUICKLY_S)
    assert scene.history.unconcluded == record


@pytest.mark.parametrize("during", ["notification", "probation"])
def test_what_a_stop_cut_short_is_taken_up_by_the_next_start(scene: Scene, during: str) -> None:
    watch = scene.watch(TOLD, GATED, HEALTH)
    record = scene.swap(watch)
    until(lambda: bool(scene.told()))
    if during == "probation":
        (scene.path / "go").touch()
        until(lambda: len(scene.log.names()) == 2)
    scene.end()
    assert "health.failed" not in scene.log.names()
    scene.start()
    assert scene.history.unconcluded == record
    for name in ("go", "well"):
        (scene.path / name).touch()
    with scene.holding.alone:
        scene.follow_up.resume(watch)
        scene.follow_up.resume(watch)  # it is under way
    assert scene.follow_up.on_probation == record.data["release"]
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.told() == [record.data["release"]] * 2
    assert scene.concluded() == [{"release": record.data["release"], "of": record.seq}]
    with scene.holding.alone:
        scene.follow_up.resume(watch)
    assert scene.follow_up.wait(QUICKLY_S)
    assert len(scene.told()) == 2


def test_an_end_that_could_not_be_recorded_is_without_telling_anybody_again(scene: Scene) -> None:
    watch = scene.watch(GATED, TOLD)
    record = scene.swap(watch)
    scene.disk.failing = True
    (scene.path / "go").touch()
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.log.names()[-1] == "release.conclude_failed"
    scene.disk.failing = False
    scene.holding.recover()
    assert scene.history.unconcluded == record
    with scene.holding.alone:
        scene.follow_up.resume(watch)
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.told() == [record.data["release"]]
    assert len(scene.concluded()) == 1


def test_a_way_back_that_fails_is_tried_again_and_told_once(scene: Scene) -> None:
    scene.swap(scene.watch())
    watch = scene.watch(TOLD, HEALTH, within=0.05)
    record = scene.swap(watch)
    scene.obstacle = OSError(errno.ENOSPC, "No space left on device")
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.history.unconcluded == record, "else it would be forgotten that it is not well"
    assert scene.follow_up.on_probation is None, "a better one may come"
    for attempt in range(3):
        scene.obstacle = None if attempt == 2 else scene.obstacle
        with scene.holding.alone:
            scene.follow_up.resume(watch)
        assert scene.follow_up.wait(QUICKLY_S)
    assert [leaving for leaving, _ in scene.gone_back] == [record.data["release"]]
    assert scene.log.names().count("release.rollback_failed") == 1
    assert scene.log.names().count("health.failed") == 1
    assert scene.told() == [record.data["release"]]


def test_with_nothing_to_go_back_to_it_ends_and_is_remembered_as_not_well(scene: Scene) -> None:
    scene.obstacle = UsageError("there is no earlier release to roll back to")
    record = scene.swap(scene.watch(HEALTH, within=0.05))
    assert scene.follow_up.wait(QUICKLY_S)
    assert "release.rollback_failed" in scene.log.names()
    assert scene.concluded() == [{"release": record.data["release"], "of": record.seq, "unwell": True}]
    assert scene.history.doubtful() == {record.data["release"]}


def test_a_probation_is_held_to_the_rule_as_it_is_now(scene: Scene) -> None:
    record = scene.swap(scene.watch(HEALTH))
    until(lambda: scene.follow_up.on_probation == record.data["release"])
    scene.follow_up.retarget(scene.watch(HEALTH.replace("/well", "/fine")))
    (scene.path / "fine").touch()
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.log.names() == ["health.passed"]
    scene.follow_up.retarget(scene.watch(HEALTH))
    assert scene.follow_up.on_probation is None, "it is over"


def test_a_probation_that_nobody_asks_for_any_more_ends(scene: Scene) -> None:
    scene.swap(scene.watch(HEALTH))
    scene.follow_up.retarget(scene.watch())
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.follow_up.on_probation is None
    assert len(scene.concluded()) == 1
    assert scene.log.names() == []


def test_without_a_thread_nothing_waits_for_ever(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    (scene.path / "well").touch()
    watch = scene.watch(HEALTH)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        record = scene.swap(watch)
    assert scene.follow_up.on_probation is None
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.log.names() == ["release.conclude_failed"]
    with scene.holding.alone:
        scene.follow_up.resume(watch)
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.concluded()[0]["of"] == record.seq


def test_a_defect_is_told_and_nothing_waits_for_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("spancat_daemon.after.steps.notify", fail)
    watch = scene.watch(TOLD, HEALTH)
    record = scene.swap(watch)
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.follow_up.on_probation is None
    assert scene.log.names() == ["release.conclude_failed"]
    with scene.holding.alone:
        scene.follow_up.resume(watch)
    assert scene.follow_up.wait(QUICKLY_S)
    assert scene.log.names() == ["release.conclude_failed"], "only the next start tries again"
    assert scene.history.unconcluded == record


def test_nobody_waits_longer_than_asked(scene: Scene) -> None:
    scene.swap(scene.watch(HEALTH))
    assert not scene.follow_up.wait(0.05)
