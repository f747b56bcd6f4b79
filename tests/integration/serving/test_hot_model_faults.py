"""What the machine, the application or a release's code does to those who serve, and what comes of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import gc
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import spacy

from spancat_daemon import HotModel, load
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import lease
from spancat_daemon.serving import hindrance
from spancat_daemon.serving import hot as hot_module
from spancat_daemon.serving.stamps import stamp_of
from tests.faults import loop_device
from tests.faults.loop_device import Mounted, lacks
from tests.integration.serving.conftest import Model, answer, answers
from tests.integration.serving.forking import Child
from tests.integration.serving.publishing import Publisher
from tests.integration.serving.watching import PATIENCE_S, Told
from tests.pipelines import texts
from tests.service import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon.release.swap import Kind
    from spancat_daemon.serving.listing import Held

Models = tuple[Model, Model]


def _exit(*_: Any, **__: Any) -> Any:
    raise SystemExit(1)


def test_a_callback_that_exits_ends_no_watch(linking: Publisher, models: Models) -> None:
    linking.publish(models[0].path)
    with HotModel(linking.path, on_swap=_exit) as hot:
        hot.wait()
        second = linking.publish(models[1].path)
        until(lambda: hot.release is not None and hot.release.id == second.id)


def test_a_callback_may_use_and_close_it(linking: Publisher, models: Models) -> None:
    given: list[Any] = []

    def swapped(*_: object) -> None:
        assert created.wait(PATIENCE_S)
        given.extend([hot.wait(), answers(hot), asyncio.run(hot.ready())])
        hot.close()
        closed.set()

    first = linking.publish(models[0].path)
    created, closed = threading.Event(), threading.Event()
    hot = HotModel(linking.path, on_swap=swapped)
    created.set()
    assert closed.wait(PATIENCE_S)
    hot.close()
    assert [given[0].id, given[1], given[2].id] == [first.id, models[0].answers, first.id]
    until(lambda: not hot._thread.is_alive())
    assert not lease.is_leased(linking.path / "current")


def test_a_release_whose_code_exits_ends_no_watch(
    linking: Publisher, models: Models, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HotModel(linking.path, **told.callbacks) as hot:
        assert "there is no release yet" in told.error()
        with monkeypatch.context() as patched:
            patched.setattr(spacy, "load", _exit)
            linking.publish(models[0].path)
            assert "can't be loaded: SystemExit: 1" in told.error()
            assert not lease.is_leased(linking.path / "current")
        second = linking.publish(models[1].path)
        assert told.swap() == (second.id, None)
        assert answers(hot) == models[1].answers


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_what_only_hindered_it_is_tried_again_and_told_once(
    linking: Publisher, models: Models, told: Told, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(hindrance, "_SHORTEST_DELAY_S", 0.0)
    load, tries = spacy.load, 0

    def hindered(*args: Any, **kwargs: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise error
        return load(*args, **kwargs)

    first = linking.publish(models[0].path)
    with HotModel(linking.path, **told.callbacks) as hot:
        assert told.swap() == (first.id, None)
        monkeypatch.setattr(spacy, "load", hindered)
        second = linking.publish(models[1].path)
        while told.swaps.empty():
            hot._pulse.wake()  # instead of the second that it waits
        assert told.swap() == (second.id, first.id)
        assert str(second.path) in told.error()
    assert tries == 4
    assert told.errors.empty()


def test_who_gives_up_waiting_leaves_nothing_behind(linking: Publisher) -> None:
    """As a health check does that asks every second for days."""
    kinds = (asyncio.Event, asyncio.Future, concurrent.futures.Future, asyncio.Task)

    def kept() -> int:
        gc.collect()
        return sum(type(thing) in kinds for thing in gc.get_objects())

    async def ask() -> None:
        for patience_s in (0.0, 0.001):
            with pytest.raises(SpancatDaemonError, match="there is no release yet"):
                await hot.ready(patience_s=patience_s)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hot.ready(patience_s=None), 0.001)

    with HotModel(linking.path, on_error=lambda _: None) as hot:
        asyncio.run(ask())
        before = kept()
        for _ in range(10):
            asyncio.run(ask())
        assert kept() == before


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_a_release_that_can_not_be_listed_is_said_and_then_served(models: Models) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        publisher = Publisher(folder / "models")
        first = publisher.publish(models[0].path)
        first.path.chmod(0o711)

        def work(tell: Callable[[Any], None]) -> Any:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            told = Told()
            hot = HotModel(publisher.path, **told.callbacks)
            try:
                hot.wait()
            except SpancatDaemonError as error:
                tell(str(error))
            tell(told.error())
            tell(told.swap())
            tell(told.errors.empty())
            return hot

        with Child(work) as child:
            said = child.told()
            assert said.startswith(f"{publisher.path}/current: can't be read: Permission denied; this user")
            assert child.told() == said
            first.path.chmod(0o755)
            assert child.told() == (first.id, None)
            assert child.told()
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("how", ["replaced by a link", "the link leads elsewhere"])
def test_a_folder_that_becomes_another_one_is_followed(
    publisher: Publisher, models: Models, told: Told, tmp_path: Path, how: str
) -> None:
    first = publisher.publish(models[0].path)
    other = Publisher(tmp_path / "other", publisher.kind)
    second = other.publish(models[1].path)
    path = publisher.path
    if how == "the link leads elsewhere":
        path = tmp_path / "link"
        path.symlink_to("models")
    with HotModel(path, **told.callbacks) as hot:
        assert told.swap() == (first.id, None)
        fresh = tmp_path / "fresh"
        fresh.symlink_to("other")
        if not path.is_symlink():
            path.rename(tmp_path / "away")
        fresh.rename(path)
        assert told.swap() == (second.id, first.id)
        third = other.publish(models[0].path)
        assert told.swap() == (third.id, second.id)
        assert answers(hot) == models[0].answers


@pytest.mark.root
@pytest.mark.skipif(bool(lacks("ext4")), reason=lacks("ext4"))
def test_a_read_only_mount_serves_and_holds(models: Models, told: Told, tmp_path: Path, kind: Kind) -> None:
    with Mounted(tmp_path, loop_device.Kind("ext4")) as mounted:
        publisher = Publisher(mounted.path / "models", kind)
        first = publisher.publish(models[0].path)
        seen = tmp_path / "seen"
        seen.mkdir()
        subprocess.run(["mount", "--bind", "-o", "ro", str(mounted.path), str(seen)], check=True)
        try:
            with HotModel(seen / "models", **told.callbacks) as hot:
                assert told.swap() == (first.id, None)
                assert lease.is_leased(publisher.path / "current")
                second = publisher.publish(models[1].path)
                assert told.swap() == (second.id, first.id)
                assert answers(hot) == models[1].answers
            nlp = load(seen / "models", release=1)
            assert [answer(nlp(text)) for text in texts()] == models[0].answers
            del nlp
            gc.collect()
        finally:
            subprocess.run(["umount", str(seen)], check=True)
        publisher.close()


def test_a_child_that_can_not_watch_says_so_and_serves_on(
    linking: Publisher, models: Models, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    linking.publish(models[0].path)
    with HotModel(linking.path, **told.callbacks) as hot, HotModel(linking.path / "typo", **told.callbacks):
        told.swap()
        assert "there is no such folder" in told.error()

        def work(tell: Callable[[Any], None]) -> Any:
            tell([told.error(), told.error()])
            tell(answers(hot) == models[0].answers)
            return hot

        def no_descriptor_left(*_: Any) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(os, "eventfd", no_descriptor_left)
            child = Child(work)
        with child:
            assert all("can't be followed in this process: OSError: " in said for said in child.told())
            assert child.told()


def test_closing_loads_nothing(
    linking: Publisher, models: Models, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if a look is under way: it would keep who closes waiting for the time of a load."""
    linking.publish(models[0].path)
    closing: list[threading.Thread] = []
    hot = HotModel(linking.path, **told.callbacks)
    told.swap()

    def close_first(fd: int) -> Any:
        if not closing:
            closing.append(threading.Thread(target=hot.close))
            closing[0].start()
            until(lambda: hot.release is None)
        return stamp_of(fd)

    def loaded(held: Held, **_: Any) -> Any:
        raise AssertionError(held)

    monkeypatch.setattr(hot_module, "read", loaded)
    monkeypatch.setattr(hot_module, "stamp_of", close_first)
    until(lambda: bool(closing))
    closing[0].join(PATIENCE_S)
    assert not closing[0].is_alive()
    assert told.errors.empty()
