"""A folder whose holder lets others in for a while: whatever they do, and however that ends."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from spancat_daemon.deploying.holding import Holding
from spancat_daemon.errors import Moved, SpancatDaemonError
from spancat_daemon.release.durability import DURABLE
from spancat_daemon.release.folder import DeploymentFolder, FolderBusy
from tests.integration.release.fakes import now

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spancat_daemon.deploying.chronicle import Chronicle


class Silent:
    def missed(self, _history: Any) -> None: ...

    def recovered(self, _recovered: Any, _history: Any) -> None: ...

    def held_anew(self, _live: Any) -> None: ...


def nothing() -> None: ...


def holding_of(folder: DeploymentFolder) -> Holding:
    return Holding(
        folder,
        cast("Chronicle", Silent()),
        holder="test",
        kind=lambda: "symlink",
        now=now,
        durability=DURABLE,
    )


@pytest.fixture
def folder(tmp_path: Path) -> DeploymentFolder:
    return DeploymentFolder(tmp_path / "products")


@pytest.fixture
def holding(folder: DeploymentFolder) -> Iterator[Holding]:
    holding = holding_of(folder)
    holding.take()
    yield holding
    holding.let_go()


class Other:
    """Does something in another thread."""

    def __init__(self, what: Any) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._what = what
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._what()
        except BaseException as error:  # noqa: BLE001  # told by `ends`
            self.error = error
        self.done.set()

    def ends(self) -> BaseException | None:
        assert self.done.wait(120)
        return self.error

    def waits(self) -> bool:
        return not self.done.wait(0.1)


def test_others_come_in_and_leave_alone_what_is_still_worked_on(
    holding: Holding, folder: DeploymentFolder
) -> None:
    with holding.alone:
        for name in ("mine", "left"):
            (folder.staging_path / name).mkdir()
        assert Other(holding.recover).waits()
        with holding.let_others_in("mine", nothing):
            assert Other(holding.ready).ends() is None
            assert [path.name for path in folder.staging_path.iterdir()] == ["mine"]
        assert not holding.lets_others_in
        assert Other(holding.recover).waits()
        assert (folder.staging_path / "mine").exists()
    assert Other(holding.recover).ends() is None
    assert not list(folder.staging_path.iterdir())


@pytest.mark.parametrize("by", ["wake", "body"])
def test_the_mutex_is_held_again_whatever_is_raised_meanwhile(holding: Holding, by: str) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    def let_in() -> None:
        with holding.let_others_in("mine", fail if by == "wake" else nothing):
            fail()

    with holding.alone:
        with pytest.raises(ZeroDivisionError):
            let_in()
        assert not holding.lets_others_in
        assert Other(holding.recover).waits()
    assert Other(holding.recover).ends() is None


def test_several_may_let_others_in_at_once(holding: Holding, folder: DeploymentFolder) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with holding.alone:
            (folder.staging_path / "others").mkdir()
            with holding.let_others_in("others", inside.set):
                assert go_on.wait(120)
            assert (folder.staging_path / "others").exists()

    with holding.alone:
        (folder.staging_path / "mine").mkdir()
        with holding.let_others_in("mine", nothing):
            second = Other(other)
            assert inside.wait(120)
        holding.recover()
        assert [path.name for path in folder.staging_path.iterdir()] == ["others"]
    go_on.set()
    assert second.ends() is None


def test_letting_go_waits_for_who_is_still_to_come_back(holding: Holding, folder: DeploymentFolder) -> None:
    with holding.alone:
        with holding.let_others_in("mine", nothing):
            letting_go = Other(holding.let_go)
            assert letting_go.waits()
            assert not holding.comes_to_rest(0.05)
            with pytest.raises(FolderBusy):
                holding_of(folder).take()
        assert letting_go.waits()
        assert Other(lambda: _must(not holding.comes_to_rest(0.05))).ends() is None
    assert letting_go.ends() is None
    assert holding.comes_to_rest(0.0)
    with pytest.raises(SpancatDaemonError, match="was let go"):
        _ = holding.history


def _must(truth: bool) -> None:
    assert truth


@pytest.mark.parametrize("meanwhile", ["deleted", "replaced", "lock deleted"])
def test_what_is_not_the_same_folder_any_more_is_not_gone_on_with(
    holding: Holding, folder: DeploymentFolder, meanwhile: str
) -> None:
    def lose() -> None:
        if meanwhile == "lock deleted":
            folder.lock_path.unlink()
        else:
            shutil.rmtree(folder.path)
        if meanwhile == "replaced":
            holding.take()

    with holding.alone, pytest.raises(Moved), holding.let_others_in("mine", nothing):
        assert Other(lose).ends() is None
    assert holding.take() is (meanwhile != "replaced")
