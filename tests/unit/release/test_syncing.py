from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from spancat_daemon.release import syncing
from spancat_daemon.release.durability import file_system_type
from spancat_daemon.release.syncing import AT_ONCE, sync_all
from spancat_daemon.release.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable


HERE: Final = Path("/proc")
"""Of a type of its own, whatever the tests run on."""


def failing(reason: str) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(reason)

    return fail


def test_nothing_to_sync() -> None:
    sync_all([], on=HERE)


@pytest.mark.parametrize("count", [1, 2, AT_ONCE + 1, 5 * AT_ONCE])
def test_each_is_made_once(count: int) -> None:
    made: list[int] = []
    sync_all([lambda number=number: made.append(number) for number in range(count)], on=HERE)  # type: ignore[misc]
    assert sorted(made) == list(range(count))


def test_they_wait_at_the_same_time() -> None:
    """Each waits until all of them have begun."""
    all_of_them = threading.Barrier(AT_ONCE + 1, timeout=30)

    def wait() -> None:
        all_of_them.wait()

    sync_all([wait] * (AT_ONCE + 1), on=HERE)


def test_on_btrfs_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "file_system_type", lambda _: 0x9123683E)
    made: list[tuple[int, threading.Thread]] = []
    sync_all([lambda n=n: made.append((n, threading.current_thread())) for n in range(5)], on=HERE)  # type: ignore[misc]
    assert made == [(n, threading.current_thread()) for n in range(5)]


def test_the_type_of_a_file_system(tmp_path: Path) -> None:
    assert file_system_type(Path("/proc")) == 0x9FA0  # linux/magic.h
    assert file_system_type(Path("/dev/shm")) == 0x01021994  # noqa: S108  # tmpfs
    assert file_system_type(tmp_path / "missing") == 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_failure_is_raised_once_all_have_ended(place: int) -> None:
    others_began, ended = threading.Event(), []

    def lasting() -> None:
        others_began.set()
        ended.append(threading.current_thread())

    def late_failure() -> None:
        assert others_began.wait(30)
        raise OSError("the disk is gone")

    syncs: list[Callable[[], None]] = [lasting, lasting]
    syncs.insert(place, late_failure)
    with pytest.raises(OSError, match="the disk is gone"):
        sync_all(syncs, on=HERE)
    began = len(ended)
    assert began >= 1
    Threads("after", at_most=1).submit(int).result()
    assert len(ended) == began  # nothing goes on


def test_the_first_of_several_failures() -> None:
    with pytest.raises(OSError, match="the first"):
        sync_all([int, failing("the first"), failing("the second")], on=HERE)  # type: ignore[list-item]


def test_the_threads_are_kept() -> None:
    threads = Threads("kept", at_most=1)
    first = threads.submit(threading.get_ident).result()
    assert threads.submit(threading.get_ident).result() == first


def test_a_thread_without_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads("fleeting", at_most=1, idle_s=0.001)
    first = threads.submit(threading.current_thread).result()
    first.join(30)
    assert not first.is_alive()
    assert threads.submit(int).result(30) == 0  # by another one

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        none = Threads("none", at_most=1)
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(OSError, match="can't start new thread"):
            none.submit(int)
    assert none.submit(lambda: 1).result(30) == 1


def test_there_are_no_more_than_that() -> None:
    threads, going_on = Threads("few", at_most=2), threading.Event()

    def wait() -> threading.Thread:
        assert going_on.wait(30)
        return threading.current_thread()

    waiting = [threads.submit(wait) for _ in range(6)]
    going_on.set()
    assert 1 <= len({one.result(30) for one in waiting}) <= 2


def test_what_is_cancelled_is_not_made() -> None:
    threads, going_on = Threads("cancelled", at_most=1), threading.Event()
    made: list[int] = []
    first = threads.submit(going_on.wait, 30)
    second = threads.submit(made.append, 2)
    third = threads.submit(made.append, 3)
    assert second.cancel()
    going_on.set()
    third.result(30)
    assert first.result(30)
    assert made == [3]


def test_a_forked_child_has_threads_of_its_own() -> None:
    threads = Threads("forked", at_most=1)
    threads.submit(int).result()
    child = os.fork()
    if child == 0:
        os._exit(threads.submit(lambda: 7).result(30))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
