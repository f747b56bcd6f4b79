"""One deployment held for long: what it remembers between its looks at a checkpoint, and what it tells."""

from __future__ import annotations

import errno
import os
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

import pytest

from spancat_daemon.checkpoint.settle import file_clock_ns
from spancat_daemon.config.expand import targets
from spancat_daemon.config.load import load
from spancat_daemon.daemon.holdings import Holdings
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import copying, rejects
from spancat_daemon.release.durability import Durability
from spancat_daemon.release.folder import DeploymentFolder, FolderBusy
from spancat_daemon.release.staging import Abandoned
from spancat_daemon.verify.verdict import LoadVerdict, Verification
from spancat_daemon.verify.verification import Terms
from spancat_daemon.verify.warm import WarmLoaders
from tests.judgement import history, sound
from tests.pipelines import build
from tests.service import configure, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spancat_daemon.deploying.deployment import Result
    from spancat_daemon.deploying.snapshot import Trigger
    from spancat_daemon.observe.logs import Logger


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def bind(self, **_fields: Any) -> Self:
        return self

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    warning = error = exception = info

    def of(self, *names: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name in names]


class Failing(Durability):
    """Fails to make one record of the history stay, when told to."""

    def __init__(self) -> None:
        self.records_left: int | None = None

    def sync_data(self, fd: int) -> None:
        if self.records_left is not None:
            self.records_left -= 1
            if self.records_left < 0:
                raise OSError(errno.EIO, "a failing disk")
        super().sync_data(fd)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def disk() -> Failing:
    return Failing()


@pytest.fixture
def held(tmp_path: Path, log: Log, disk: Failing) -> Iterator[Deployment]:
    build("default", tmp_path / "runs/model-best")
    (target,) = targets(load(configure(tmp_path)))
    with (
        WarmLoaders(at_most=1) as loaders,
        Deployment(
            target, min_free_bytes=0, log=cast("Logger", log), loaders=loaders, durability=disk
        ) as deployment,
    ):
        yield deployment


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    return tmp_path / "models/products"


def look(held: Deployment, trigger: Trigger, *, force: bool = False) -> Result:
    """A snapshot, tried again as the daemon does while the checkpoint was written this very moment."""
    deadline = time.monotonic() + 120
    while True:
        result = held.snapshot(trigger, force=force)
        if result.kind != "busy" or time.monotonic() > deadline:
            return result
        time.sleep(result.retry_after_s or 0.01)


def publish(held: Deployment, *, force: bool = False) -> str:
    result = look(held, "manual", force=force)
    assert result.status == "published", result.reason
    assert result.release is not None
    return result.release


def next_generation(tmp_path: Path, generation: int = 1) -> None:
    fresh = build("default", tmp_path / f"next-{generation}", generation=generation)
    (tmp_path / "runs/model-best").rename(tmp_path / f"before-{generation}")
    fresh.rename(tmp_path / "runs/model-best")


def link(deploy: Path, release: str) -> None:
    """What somebody does in a hurry."""
    (deploy / "new").symlink_to(f"releases/{release}")
    (deploy / "new").rename(deploy / "current")


@pytest.mark.parametrize("restarted", [False, True])
def test_going_back_by_hand_is_accepted_as_a_rollback_is(
    held: Deployment, tmp_path: Path, deploy: Path, log: Log, *, restarted: bool
) -> None:
    first = publish(held)
    next_generation(tmp_path)
    second = publish(held)
    link(deploy, first)
    if restarted:
        held.close()
        held.hold()
    result = look(held, "change")
    assert (result.status, result.release) == ("rejected", first)
    assert "was rolled back" in result.reason
    assert not log.of("snapshot.unchanged")
    assert sound(deploy)["id"] == first
    # And forth again
    link(deploy, second)
    result = look(held, "change")
    assert (result.status, result.release) == ("unchanged", second)


def test_judging_the_same_checkpoint_again_and_again_keeps_nothing(held: Deployment, tmp_path: Path) -> None:
    publish(held)
    next_generation(tmp_path)
    publish(held)
    held.rollback(None)
    assert look(held, "change").status == "rejected"
    assert held._looking._known.refused is not None
    error = held._looking._known.refused.error
    frames = set()
    for _ in range(5):
        assert look(held, "change").status == "rejected"
        frames.add(len(traceback.extract_tb(error.__traceback__)))
    assert len(frames) == 1


def test_what_could_not_be_read_is_read_again(held: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bytes:
        raise copying.UnreadableSourceError(os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(copying, "read_at", fail)
        result = look(held, "change")
    assert result.status == "rejected"
    assert "can't be read" in result.reason
    assert look(held, "change").status == "published"


def test_a_swap_is_told_once_also_where_no_mark_of_it_can_be_made(
    held: Deployment, deploy: Path, log: Log
) -> None:
    (deploy / ".spancat-daemon/announced").mkdir()
    publish(held)
    for _ in range(3):
        look(held, "schedule")
    assert len(log.of("release.published")) == 1
    publish(held, force=True)
    look(held, "schedule")
    assert len(log.of("release.overwrite")) == 1


@pytest.mark.parametrize("by", ["snapshot", "rollback"])
def test_a_commit_that_recovery_makes_says_all_that_others_say(
    held: Deployment, tmp_path: Path, deploy: Path, log: Log, disk: Failing, by: str
) -> None:
    publish(held)
    next_generation(tmp_path)
    if by == "rollback":
        publish(held)
    disk.records_left = 1  # the intent
    if by == "snapshot":
        assert look(held, "change").status == "failed"
    else:
        with pytest.raises(OSError, match="a failing disk"):
            held.rollback(None)
    disk.records_left = None
    held.recover()
    recovered = log.of("release.overwrite")[-1]
    assert recovered["recovered"] is True
    assert (recovered["swap_s"], recovered["total_s"]) == (None, None)
    assert recovered["history_seq"] == history(deploy)[-1]["seq"]
    publish(held, force=True)
    assert recovered.keys() - {"recovered"} == log.of("release.overwrite")[-1].keys()
    assert len(log.of("release.rolled_back")) == (by == "rollback")


def test_a_rollback_does_not_leave_another_release_than_the_one_that_was_seen(
    held: Deployment, tmp_path: Path, log: Log
) -> None:
    first = publish(held)
    next_generation(tmp_path, 1)
    seen = publish(held)
    next_generation(tmp_path, 2)
    meanwhile = publish(held)
    with pytest.raises(SpancatDaemonError, match=f"{meanwhile} went live meanwhile, in place of {seen}"):
        held.rollback(None, leaving=seen)
    assert held.live_id() == meanwhile
    assert held.rollback(None, leaving=meanwhile)["release"] == seen
    assert held.rollback(first, leaving=None)["release"] == first


def test_what_was_rolled_back_is_refused_without_alarm(held: Deployment, tmp_path: Path, log: Log) -> None:
    publish(held)
    next_generation(tmp_path, 1)
    publish(held)
    held.rollback(None)
    refused = look(held, "manual")
    assert (refused.status, refused.reason) == (
        "rejected",
        (
            "its content was live and was rolled back, or replaced by save();"
            " `snapshot --force` makes it live again"
        ),
    )
    (told,) = log.of("snapshot.rejected")
    assert told["path"] == str(held.target.source)


UNWELL = '[watch.health]\ncommand = ["false"]\nwithin = "10m"\ntimeout = "1s"\n'


class Clock:
    """Steps when told to."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def now_ns(self) -> int:
        return file_clock_ns() + int(self.ahead_s * 1e9)


@contextmanager
def holding(
    tmp_path: Path, log: Log, disk: Failing, more: str = "", *, clock: Clock | None = None, **keys: Any
) -> Iterator[Deployment]:
    """As the daemon holds it."""
    if not (tmp_path / "runs").exists():
        build("default", tmp_path / "runs/model-best")
    (target,) = targets(load(configure(tmp_path, more=more, **keys)))
    clock = clock or Clock()
    with (
        WarmLoaders(at_most=1) as loaders,
        Deployment(
            target,
            min_free_bytes=0,
            log=cast("Logger", log),
            loaders=loaders,
            durability=disk,
            monotonic=clock.monotonic,
            now_ns=clock.now_ns,
            resumes=True,
        ) as deployment,
    ):
        try:
            yield deployment
        finally:
            deployment.abandon()


def test_what_follows_a_swap_follows_also_if_only_recovery_could_commit_it(
    tmp_path: Path, deploy: Path, log: Log, disk: Failing
) -> None:
    with holding(tmp_path, log, disk, UNWELL) as held:
        disk.records_left = 1  # the intent
        assert look(held, "change").status == "failed"
        disk.records_left = None
        next_generation(tmp_path)
        result = look(held, "change")
        assert result.status == "probation", "what is live has to do well first"
        assert held.on_probation == result.release == sound(deploy)["id"]


def test_a_schedule_that_forces_waits_for_a_probation_and_somebody_who_insists_does_not(
    tmp_path: Path, log: Log, disk: Failing
) -> None:
    with holding(tmp_path, log, disk, UNWELL) as held:
        first = look(held, "change").release
        assert held.on_probation == first
        assert look(held, "schedule", force=True).status == "probation"
        assert look(held, "manual").status == "probation"
        assert look(held, "manual", force=True).status == "published"


def test_a_schedule_that_forces_does_not_bring_back_what_somebody_went_back_from(
    held: Deployment, tmp_path: Path
) -> None:
    first = publish(held)
    next_generation(tmp_path)
    publish(held)
    held.rollback(None)
    result = look(held, "schedule", force=True)
    assert (result.status, result.release) == ("rejected", first)
    assert look(held, "manual", force=True).status == "published"


def test_what_is_unwell_does_not_go_back_to_what_was_never_seen_to_be_well(
    tmp_path: Path, log: Log, disk: Failing
) -> None:
    well = UNWELL.replace("false", "true")
    with holding(tmp_path, log, disk, well) as held:
        first = publish(held)
        until(lambda: held.on_probation is None)
        (target,) = targets(load(configure(tmp_path, more=UNWELL)))
        held.retarget(target, min_free_bytes=0)
        next_generation(tmp_path, 1)
        second = publish(held)
        assert held.on_probation == second
        next_generation(tmp_path, 2)
        third = publish(held, force=True)
        (target,) = targets(load(configure(tmp_path, more=UNWELL.replace("10m", "1s"))))
        held.retarget(target, min_free_bytes=0)
        until(lambda: bool(log.of("release.rolled_back")), what=str(log.events[-3:]))
        assert held.live_id() == first
        (back,) = log.of("release.rolled_back")
        assert (back["from_release"], back["release"]) == (third, first)


def test_what_was_given_up_is_not_held_again(held: Deployment, tmp_path: Path, log: Log) -> None:
    publish(held)
    next_generation(tmp_path)
    second = publish(held)
    held.abandon()
    held.close()
    for act in (lambda: held.rollback(None), held.keeping.prune, lambda: held.keeping.pin(second)):
        with pytest.raises(Abandoned):
            act()
    held.corrupted(second, held.folder.path, ["it rotted"], live=True, heal=True)
    assert not log.of("release.rollback_failed")
    with held.folder.lock("somebody else"):
        pass


def test_reading_a_release_to_go_back_to_is_given_up_at_a_stop(
    held: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(held)
    next_generation(tmp_path)
    second = publish(held)
    before_live = held.folder.before_live

    def stop(**settings: Any) -> Any:
        held.abandon()
        return before_live(**settings)

    monkeypatch.setattr(held.folder, "before_live", stop)
    with pytest.raises(Abandoned):
        held.rollback(None)
    assert held.live_id() == second


def test_new_terms_count_though_they_came_while_the_old_were_held_against(
    tmp_path: Path, log: Log, disk: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = tmp_path / "probes.jsonl"
    probes.write_text('{"text": "one"}\n')
    more = f'[watch.verify]\nprobes = "{probes}"\n'

    def refuse(*arguments: Any, **_: Any) -> Verification:
        terms = next(part for part in arguments if isinstance(part, Terms))
        asked.append([probe.text for probe in terms.probes])
        probes.write_text('{"text": "another"}\n')
        return Verification(level="probes", passed=False, reason="no", terms_sha256=terms.sha256)

    asked: list[list[str]] = []
    monkeypatch.setattr("spancat_daemon.deploying.snapshot.verify", refuse)
    with holding(tmp_path, log, disk, more, level=None) as held:
        for _ in range(3):
            assert look(held, "change").status == "rejected"
    assert asked == [["one"], ["another"]]


@pytest.mark.parametrize("restarted", [False, True])
def test_what_came_to_a_limit_is_tried_again_later_and_nothing_else_is(
    tmp_path: Path, log: Log, disk: Failing, monkeypatch: pytest.MonkeyPatch, *, restarted: bool
) -> None:
    asked: list[str] = []
    fault: list[Any] = ["limit"]

    def refuse(*arguments: Any, **_: Any) -> Verification:
        terms = next(part for part in arguments if isinstance(part, Terms))
        asked.append(terms.sha256)
        verdict = LoadVerdict(ok=False, fault=fault[0], reason="no answer within 1 s")
        return Verification(
            level="load", passed=False, reason="no answer", terms_sha256=terms.sha256, verdict=verdict
        )

    monkeypatch.setattr("spancat_daemon.deploying.snapshot.verify", refuse)
    clock = Clock()
    with holding(tmp_path, log, disk, clock=clock) as held:
        for looks, (ahead_s, expected) in enumerate(
            [(0, 1), (0, 1), (3700, 2), (0, 2), (3700, 3), (7200, 3)]
        ):
            clock.ahead_s += ahead_s
            fault[0] = "limit" if looks < 4 else "release"
            assert look(held, "change").status == "rejected"
            assert len(asked) == expected
            if restarted:
                held._looking.forget()


def test_a_renamed_rule_is_called_by_its_new_name(tmp_path: Path, log: Log, disk: Failing) -> None:
    gate = '[watch.gate]\nmax_bytes = "1B"\n'
    with holding(tmp_path, log, disk, gate) as held:
        assert look(held, "change").status == "rejected"
        (rejected,) = rejects.rejected(held.folder)
        held.retarget(replace(held.target, rule="goods"), min_free_bytes=0)
        assert held.promote(rejected.id, force=True, reason="because")["rule"] == "goods"
        (told,) = log.of("release.promoted")
        assert (told["snapshot"], told["reason"]) == (rejected.id, "because")
        live = held.folder.live()
        assert live is not None
        assert live.manifest.rule == "goods"


def test_a_refused_reload_does_not_wait_for_what_its_new_folders_took_up(
    tmp_path: Path, log: Log, disk: Failing
) -> None:
    with holding(tmp_path, log, disk, UNWELL) as held:
        assert look(held, "change").status == "published"
        (target,) = targets(load(configure(tmp_path, more=UNWELL)))
    busy = replace(target, deploy=tmp_path / "models/busy")
    other = DeploymentFolder(busy.deploy)
    other.prepare()
    with other.lock("somebody else"), WarmLoaders(at_most=1) as loaders:
        holdings = Holdings(
            log=cast("Logger", log),
            has_logged=lambda _rule, _sha: False,
            loaders=loaders,
            wake=lambda: None,
            state_dir=tmp_path / "var",
            control=tmp_path / "control.sock",
        )
        began = time.monotonic()
        with pytest.raises(FolderBusy):
            holdings.follow([target, busy], min_free_bytes=0, hold=True)
        assert time.monotonic() - began < 10
    assert holdings.all() == []
