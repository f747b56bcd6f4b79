from __future__ import annotations

import errno
import fcntl
import os
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.errors import Moved, Rejected
from spancat_daemon.release.copying import (
    CHUNK_BYTES,
    CLONE_BYTES,
    PIECE_BYTES,
    SMALL_BYTES,
    Copier,
    UnreadableSourceError,
    same_content,
)
from spancat_daemon.release.digesting import CHUNK_BYTES as FED_BYTES
from spancat_daemon.release.digesting import Intake
from spancat_daemon.release.durability import DURABLE
from tests.unit.release.staging_scene import no_descriptors_lost, sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LENGTHS = [
    0,
    1,
    CHUNK_BYTES,
    SMALL_BYTES - 1,
    SMALL_BYTES,
    SMALL_BYTES + 1,
    FED_BYTES,
    FED_BYTES + 1,
    PIECE_BYTES + 1,
    9 * PIECE_BYTES,
]


class Collecting:
    """A proof that keeps what it was fed."""

    def __init__(self) -> None:
        self.fed = bytearray()
        self.finished = False

    def feed(self, chunk: bytes) -> None:
        self.fed += chunk

    def finish(self) -> None:
        self.finished = True


class Files:
    """Two files, open as staging opens them."""

    def __init__(self, folder: Path, data: bytes) -> None:
        (folder / "source").write_bytes(data)
        self.source_path = folder / "source"
        self.target_path = folder / "target"
        self.source = os.open(self.source_path, os.O_RDONLY)
        self.target = os.open(self.target_path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444)

    def close(self) -> None:
        os.close(self.source)
        os.close(self.target)


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    with no_descriptors_lost():
        yield


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Callable[[bytes], Files]]:
    made: list[Files] = []

    def make(data: bytes) -> Files:
        made.append(Files(tmp_path, data))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.fixture
def copier() -> Iterator[Copier]:
    copier = Copier(DURABLE, lambda: None)
    yield copier
    copier.close()


def copied(copier: Copier, pair: Files, data: bytes) -> None:
    proof = Collecting()
    assert copier.copy(pair.source, pair.target, len(data), Intake(proof)).sha256() == sha256(data)
    assert proof.fed == data
    assert proof.finished
    assert pair.target_path.read_bytes() == data


@pytest.mark.parametrize("length", LENGTHS)
def test_copies_and_digests_every_byte(copier: Copier, files: Any, length: int) -> None:
    data = os.urandom(length)
    copied(copier, files(data), data)


@pytest.mark.parametrize("length", LENGTHS[1:])
@pytest.mark.parametrize("more", [-1, 1])
def test_a_source_of_another_length(copier: Copier, files: Any, length: int, more: int) -> None:
    pair = files(os.urandom(length))
    with pytest.raises(Moved, match=f"does not have the {length + more} bytes"):
        copier.copy(pair.source, pair.target, length + more, Intake(None))


@pytest.mark.parametrize(
    "number", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO]
)
@pytest.mark.parametrize("after", [0, 1])
def test_a_kernel_that_will_not_copy(
    copier: Copier, files: Any, monkeypatch: pytest.MonkeyPatch, number: int, after: int
) -> None:
    real, calls = os.copy_file_range, []

    def refusing(*args: Any) -> int:
        calls.append(args)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(os, "copy_file_range", refusing)
    data = os.urandom(9 * PIECE_BYTES + 1)
    copied(copier, files(data), data)
    assert len(calls) == after + 1  # it is not asked again for this file


def test_a_kernel_that_copies_little_at_a_time(
    copier: Copier, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda s, t, n, i, o: real(s, t, min(n, 300_001), i, o))
    data = os.urandom(3 * SMALL_BYTES)
    copied(copier, files(data), data)


def test_short_reads_and_writes(copier: Copier, files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 10_007), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7_001], at))
    data = os.urandom(200_000)
    copied(copier, files(data), data)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["copy_file_range", "pwrite"])
def test_a_full_disk_is_not_tried_again(
    copier: Copier, files: Any, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    def full(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    data = os.urandom(2 * SMALL_BYTES if call == "copy_file_range" else 10)
    pair = files(data)
    with pytest.raises(OSError, match=os.strerror(number)):
        copier.copy(pair.source, pair.target, len(data), Intake(None))
    assert pair.target_path.stat().st_size == 0


def test_a_clone_where_the_file_system_can(
    copier: Copier, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What btrfs and xfs do, done by hand; the real ones are in tests/integration."""
    data = os.urandom(2 * CLONE_BYTES)

    def clone(target: int, request: int, source: int) -> int:
        assert request == 0x40049409
        os.pwrite(target, os.pread(source, 10 * CLONE_BYTES, 0), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    monkeypatch.setattr(os, "copy_file_range", None)
    pair = files(data)
    copied(copier, pair, data)
    os.ftruncate(pair.target, 0)
    with pytest.raises(Moved):  # it had grown before it was cloned
        copier.copy(pair.source, pair.target, len(data) - 1, Intake(None))


def test_asks_once_for_clones(copier: Copier, files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refused(*args: Any) -> int:
        asked.append(args)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "ioctl", refused)
    data = os.urandom(2 * CLONE_BYTES)
    pair = files(data)
    copied(copier, pair, data)
    os.ftruncate(pair.target, 0)
    copied(copier, pair, data)
    assert len(asked) == 1


@pytest.mark.parametrize("length", [10, 2 * SMALL_BYTES, 3 * PIECE_BYTES + 1])
def test_a_write_that_is_lost_is_found(
    copier: Copier, files: Any, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda _fd, data, _at: len(data))
    monkeypatch.setattr(os, "copy_file_range", lambda _s, _t, n, _i, _o: n)
    pair = files(os.urandom(length))
    with pytest.raises(OSError, match="does not hold what was written"):
        copier.copy(pair.source, pair.target, length, Intake(None)).sha256()


def test_a_piece_that_is_lost_is_missed_though_it_is_digested_late(
    copier: Copier, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the pieces after it are there, and the hole reads as zeros."""
    copying, copied = os.copy_file_range, threading.Event()

    def losing(source: int, target: int, length: int, at: int, to: int) -> int:
        if at + length == size:
            copied.set()
        return length if at == PIECE_BYTES else copying(source, target, length, at, to)

    class Late(Collecting):
        def feed(self, chunk: bytes) -> None:
            assert copied.wait(30)
            super().feed(chunk)

    monkeypatch.setattr(os, "copy_file_range", losing)
    size = 4 * PIECE_BYTES
    pair = files(os.urandom(size))
    with pytest.raises(OSError, match="does not hold what was written"):
        copier.copy(pair.source, pair.target, size, Intake(Late())).sha256()


@pytest.mark.parametrize("lost", [0, PIECE_BYTES])
def test_what_was_lost_is_not_blamed_on_the_source(
    copier: Copier, files: Any, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """A proof sees the hole before the copy has come to its end, and finds that the file is a mix."""
    copying, judged = os.copy_file_range, threading.Event()

    class Judging(Collecting):
        def feed(self, chunk: bytes) -> None:
            if b"\0" in chunk:
                judged.set()
                raise Rejected("is a mix of two files")

    def losing(source: int, target: int, length: int, at: int, to: int) -> int:
        if at == 3 * PIECE_BYTES:
            assert judged.wait(30)
        return length if at == lost else copying(source, target, length, at, to)

    size = 12 * PIECE_BYTES  # time enough for the judgement to be noticed
    whole = files(b"x" * size)
    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", losing)
        with pytest.raises(OSError, match="does not hold what was written"):
            copier.copy(whole.source, whole.target, size, Intake(Judging())).sha256()


def test_a_hole_of_the_source_is_none_of_the_copy_s_making(copier: Copier, files: Any) -> None:
    data = os.urandom(PIECE_BYTES) + bytes(2 * PIECE_BYTES) + os.urandom(10) + bytes(PIECE_BYTES)
    pair = files(b"")
    for at in (0, 3 * PIECE_BYTES):
        with pair.source_path.open("r+b") as file:
            file.seek(at)
            file.write(data[at : at + (PIECE_BYTES if at == 0 else 10)])
    os.truncate(pair.source_path, len(data))
    copied(copier, pair, data)


def test_a_write_that_makes_no_way_is_no_endless_loop(
    copier: Copier, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    pair = files(b"data")
    with pytest.raises(OSError, match="does not hold"):
        copier.copy(pair.source, pair.target, 4, Intake(None))


@pytest.mark.parametrize("length", [10, 2 * SMALL_BYTES, 20 * PIECE_BYTES])
def test_a_proof_that_fails_ends_the_copy(copier: Copier, files: Any, length: int) -> None:
    class Refusing(Collecting):
        def feed(self, chunk: bytes) -> None:
            super().feed(chunk)
            raise Rejected("is cut off")

    proof = Refusing()
    pair = files(os.urandom(length))
    with pytest.raises(Rejected, match="is cut off"):
        copier.copy(pair.source, pair.target, length, Intake(proof)).sha256()
    assert len(proof.fed) <= FED_BYTES


def test_a_source_that_can_not_be_read(files: Any, copier: Copier) -> None:
    pair = files(b"data")
    directory = os.open("/", os.O_RDONLY)
    try:
        for length in (4, 2 * SMALL_BYTES, 2 * CLONE_BYTES):
            with pytest.raises(UnreadableSourceError, match="Is a directory"):
                copier.copy(directory, pair.target, length, Intake(None))
        with pytest.raises(UnreadableSourceError, match="Is a directory"):
            same_content(directory, pair.source, 4, None, lambda: None)
        assert not same_content(pair.source, directory, 4, None, lambda: None)
    finally:
        os.close(directory)


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
def test_same_content(files: Any, length: int) -> None:
    data = os.urandom(length)
    pair = files(data)
    os.pwrite(pair.target, data, 0)
    proof = Collecting()
    assert same_content(pair.source, pair.target, length, proof, lambda: None)
    assert proof.fed == data
    assert proof.finished
    for place in {0, length // 2, length - 1} if length else set():
        os.pwrite(pair.target, bytes([data[place] ^ 1]), place)
        assert not same_content(pair.source, pair.target, length, None, lambda: None)
        os.pwrite(pair.target, data[place : place + 1], place)


@pytest.mark.parametrize("shorter", ["source", "target"])
def test_a_file_that_ends_early_is_another(files: Any, shorter: str) -> None:
    data = os.urandom(2 * CHUNK_BYTES)
    pair = files(data)
    os.pwrite(pair.target, data, 0)
    os.truncate(pair.source_path if shorter == "source" else pair.target_path, CHUNK_BYTES + 3)
    proof = Collecting()
    assert not same_content(pair.source, pair.target, len(data), proof, lambda: None)
    assert not proof.finished


def test_stops_at_the_first_difference(files: Any) -> None:
    data = os.urandom(8 * CHUNK_BYTES)
    pair = files(data)
    os.pwrite(pair.target, data[:CHUNK_BYTES] + b"\0" * (7 * CHUNK_BYTES), 0)
    pieces = []
    assert not same_content(pair.source, pair.target, len(data), None, lambda: pieces.append(1))
    assert len(pieces) == 2


@pytest.mark.parametrize(("length", "elsewhere"), [(SMALL_BYTES - 1, False), (SMALL_BYTES, True)])
def test_digests_larger_files_on_another_thread(
    copier: Copier, files: Any, length: int, *, elsewhere: bool
) -> None:
    class Noting(Collecting):
        def feed(self, chunk: bytes) -> None:
            super().feed(chunk)
            fed_by.add(threading.current_thread())

    fed_by: set[threading.Thread] = set()
    pair = files(os.urandom(length))
    copier.copy(pair.source, pair.target, length, Intake(Noting())).sha256()
    assert (fed_by != {threading.current_thread()}) is elsewhere


def test_files_are_digested_side_by_side(copier: Copier, files: Any, tmp_path: Path) -> None:
    """Each proof waits for the other one to have begun."""
    begun = threading.Barrier(2, timeout=30)

    class Meeting(Collecting):
        def feed(self, chunk: bytes) -> None:
            if not self.fed:
                begun.wait()
            super().feed(chunk)

    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor")
    data = os.urandom(SMALL_BYTES)
    (tmp_path / "other").mkdir()
    pair = files(data)
    with (tmp_path / "other" / "target").open("x+b") as other:
        both = [
            copier.copy(pair.source, target, SMALL_BYTES, Intake(Meeting()))
            for target in (pair.target, other.fileno())
        ]
        assert [one.sha256() for one in both] == [sha256(data)] * 2


def test_what_is_not_fed_yet_when_it_ends_is_not_fed(files: Any) -> None:
    copier, begun, going_on = Copier(DURABLE, lambda: None), threading.Event(), threading.Event()

    class Waiting(Collecting):
        def feed(self, chunk: bytes) -> None:
            begun.set()
            assert going_on.wait(30)
            super().feed(chunk)

    proof = Waiting()
    data = os.urandom(3 * PIECE_BYTES)
    pair = files(data)
    copy = copier.copy(pair.source, pair.target, len(data), Intake(proof))
    assert begun.wait(30)
    closing = threading.Thread(target=copier.close)
    closing.start()
    assert closing.is_alive()  # it would not be, had it not to wait for the read under way
    going_on.set()
    closing.join(30)
    assert not closing.is_alive()
    assert len(proof.fed) < len(data)
    with pytest.raises(CancelledError):
        copy.sha256()
