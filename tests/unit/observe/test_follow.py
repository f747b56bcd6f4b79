from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spancat_daemon.observe.follow import LogFollower, lines_backward

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "daemon.log"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@given(text=st.lists(st.sampled_from([b"", b"a", b"bc\xff", b"x" * 70_000])).map(b"\n".join))
@settings(max_examples=50, deadline=None)
def test_backward_is_forward_reversed(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.mktemp("log") / "x"
    path.write_bytes(text)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        backward = list(lines_backward(descriptor, len(text)))
    finally:
        os.close(descriptor)
    assert backward[::-1] == [line for line in text.split(b"\n") if line]


def test_starts_after_the_last_whole_line_and_goes_on(path: Path) -> None:
    append(path, "1\n2\n3")
    follower = LogFollower(path)
    assert list(follower.start_at_end()) == [b"2", b"1"]
    assert follower.unfinished() == [b"3"]
    assert follower.poll() == []
    append(path, "3\n4\n")
    assert follower.poll() == [b"33", b"4"]
    assert follower.poll() == []
    follower.close()


def test_a_file_that_comes_later(path: Path) -> None:
    follower = LogFollower(path)
    assert list(follower.start_at_end()) == []
    assert follower.poll() == []
    append(path, "1\n")
    assert follower.poll() == [b"1"]
    follower.close()


def test_a_rename_rotation_loses_no_line_of_a_writer_that_is_not_yet_told(path: Path) -> None:
    append(path, "1\n")
    follower = LogFollower(path)
    assert list(follower.start_at_end()) == [b"1"]
    append(path, "2\n")
    with path.open("a") as writer:
        path.rename(path.with_name("daemon.log.1"))
        path.touch()
        assert follower.poll() == [b"2"]
        writer.write("3\n")
        writer.flush()
        assert follower.poll() == [b"3"]  # written to the old file while the new one is there, empty
        writer.write("4\n")
    append(path, "5\n")
    assert follower.poll() == [b"4", b"5"]
    follower.close()


def test_what_the_old_file_got_after_the_last_look_at_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(path, "1\n")
    follower = LogFollower(path)
    list(follower.start_at_end())
    look_for_successor = follower._successor

    def rotate_first(reading: Any) -> Any:
        if not path.with_name("old").exists():
            append(path, "2\n")
            path.rename(path.with_name("old"))
            append(path, "3\n")
        return look_for_successor(reading)

    monkeypatch.setattr(follower, "_successor", rotate_first)
    assert follower.poll() == [b"2", b"3"]
    follower.close()


def test_a_torn_line_at_a_rotation_stays_apart(path: Path) -> None:
    append(path, "1\n2")
    follower = LogFollower(path)
    list(follower.start_at_end())
    assert follower.poll() == []
    path.rename(path.with_name("old"))
    append(path, "3\n")
    assert follower.poll() == [b"2", b"3"]
    follower.close()


def test_deletion_and_late_creation(path: Path) -> None:
    append(path, "1\n")
    follower = LogFollower(path)
    list(follower.start_at_end())
    path.unlink()
    assert follower.poll() == []
    append(path, "2\n")
    assert follower.poll() == [b"2"]
    follower.close()


def test_truncation_in_place(path: Path) -> None:
    append(path, "1\n2\nunfinished")
    follower = LogFollower(path)
    list(follower.start_at_end())
    assert follower.poll() == []
    os.truncate(path, 0)
    append(path, "3\n")
    assert follower.poll() == [b"3"]
    follower.close()


def test_what_has_no_line_ends_does_not_fill_memory(path: Path) -> None:
    append(path, "x" * 3_000_000)
    follower = LogFollower(path)
    pieces = follower.poll()
    assert sum(map(len, pieces)) + len(follower._rest) == 3_000_000
    assert max(map(len, pieces)) < 1_200_000
    follower.close()
    descriptor = os.open(path, os.O_RDONLY)
    assert max(map(len, lines_backward(descriptor, 3_000_000))) < 1_200_000
    os.close(descriptor)


def test_a_folder_or_fifo_is_no_log(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        LogFollower(path).poll()
    fifo = path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="Illegal seek"):
        LogFollower(fifo).poll()


def test_follows_a_writer_through_rotations_at_random_moments(path: Path) -> None:
    """Every line exactly once, in order, while a logrotate-like thread renames and tells the writer."""
    count, rotate_every = 20_000, 997
    finished = threading.Event()

    def write() -> None:
        file = path.open("a")
        for number in range(count):
            file.write(f"{number}\n")
            if number % 7 == 0:
                file.flush()
            if number % rotate_every == rotate_every - 1:
                path.rename(path.with_name(f"old-{number}"))
                path.touch()
                file.write(f"{number}+\n")  # still to the old one
                file.close()
                file = path.open("a")
                file.write(f"{number}++\n")
                file.flush()
                seen.wait(10)  # no follower can see a file that is gone between two of its looks
                seen.clear()
        file.close()
        finished.set()

    seen = threading.Event()
    append(path, "")
    follower = LogFollower(path)
    list(follower.start_at_end())
    writer = threading.Thread(target=write)
    writer.start()
    got: list[bytes] = []
    while not finished.is_set():
        lines = follower.poll()
        got += lines
        if any(line.endswith(b"++") for line in lines):
            seen.set()
    writer.join()
    got += follower.poll()
    follower.close()
    expected = []
    for number in range(count):
        expected.append(f"{number}")
        if number % rotate_every == rotate_every - 1:
            expected += [f"{number}+", f"{number}++"]
    assert [line.decode() for line in got] == expected
