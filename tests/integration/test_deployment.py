"""One deployment held for long: what it remembers between its looks at a checkpoint, and what it tells."""

from __future__ import annotations

import errno
import os
import time
import traceback
from typing import TYPE_CHECKING, Any, Self, cast

import pytest

from spancat_daemon.config.expand import targets
from spancat_daemon.config.load import load
from spancat_daemon.deployment import Deployment
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import copying
from spancat_daemon.release.durability import Durability
from spancat_daemon.verify.warm import WarmLoaders
from tests.judgement import history, sound
from tests.pipelines import build
from tests.service import configure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spancat_daemon.deployment import Result
    from spancat_daemon.observe.logs import Logger
    from spancat_daemon.snapshot import Trigger


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
    deadline = time.monotonic() + 10
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
    assert held._known.refused is not None
    error = held._known.refused.error
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
        "its content was live and was rolled back; `snapshot --force` makes it live again",
    )
    (told,) = log.of("snapshot.rejected")
    assert told["path"] == str(held.target.source)
