"""Disks that are full, gone, read-only, or can't do what others can: nothing is torn, nothing is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import current, durability
from spancat_daemon.release.folder import FolderBusy
from tests.faults.judge import generation, judge, live
from tests.faults.loop_device import Kind, Mounted, lacks
from tests.faults.power_protocol import Publisher
from tests.faults.report import tally
from tests.pipelines import build
from tests.service import Daemon, configure, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from spancat_daemon.release.swap import Kind as Swap

KiB = 1 << 10
MiB = 1 << 20
SWAPS: list[Swap] = ["symlink", "exchange"]
PROMISE = "what is live stays live and whole; the next publish with room goes through"
_WELL = "the refusal says why; what was live stays"


@contextmanager
def tmpfs(where: Path, *options: str) -> Iterator[Path]:
    """A small file system in memory."""
    if missing := lacks("tmpfs"):
        pytest.skip(missing)
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(where)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"tmpfs can't be mounted: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@contextmanager
def made(where: Path, kind: Kind) -> Iterator[Mounted]:
    """A file system in a file."""
    if missing := lacks(kind.name):
        pytest.skip(missing)
    where.mkdir()
    try:
        mounted = Mounted(where, kind).__enter__()
    except OSError as error:
        pytest.skip(str(error))
    try:
        yield mounted
    except BaseException as error:
        mounted.__exit__(type(error), error, error.__traceback__)
        raise
    mounted.__exit__(None, None, None)


@dataclass
class Trial:
    """A folder that is published into under a fault, again and again."""

    publisher: Publisher
    swap: Swap
    failed: int = 0
    done: int = 0

    @classmethod
    def on(cls, disk: Path, work: Path, swap: Swap, *, model_bytes: int = 20 * KiB) -> Trial:
        publisher = Publisher(disk / "products", work / "checkpoint", model_bytes=model_bytes)
        publisher.start(swap)
        publisher.publish(swap)
        return cls(publisher, swap)

    def under(self, fault: Callable[[], Any], mended: Callable[[], Any], numbers: set[int]) -> None:
        """Publish and prune while something is wrong; afterwards all is as it may be, and goes on."""
        deploy = self.publisher.folder.path
        before = live(deploy)
        fault()
        try:
            for work in (partial(self.publisher.publish, self.swap), self.publisher.prune):
                try:
                    work()
                    self.done += 1
                except (OSError, SpancatDaemonError) as error:
                    numbers.add(_number_of(error))
                    self.failed += 1
                assert judge(deploy, self.publisher.generations, recovered=False) == []
        finally:
            mended()
        now = live(deploy)
        assert before is not None
        assert now is not None
        assert now["sequence"] in {before["sequence"], before["sequence"] + 1}
        self.publisher.close()
        self.publisher.start(self.swap)
        assert judge(deploy, self.publisher.generations) == []
        self.publisher.publish(self.swap)
        self.publisher.prune()
        assert judge(deploy, self.publisher.generations) == []


def _number_of(error: BaseException) -> int:
    return (error.errno or 0) if isinstance(error, OSError) else 0


def fill(disk: Path, free_bytes: int) -> None:
    """Leave so much room, to the block."""
    status = os.statvfs(disk)
    filled = max(status.f_bavail * status.f_frsize - free_bytes, 0)
    fd = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            try:
                os.posix_fallocate(fd, 0, max(filled, 1))
            except OSError:  # what a file system says to be free need not be so to the last block
                filled -= 16 * KiB
                if filled <= 0:
                    raise
            else:
                return
    finally:
        os.close(fd)


def fill_names(disk: Path, free: int) -> None:
    """Leave so many inodes."""
    (disk / "names").mkdir()
    for number in range(max(os.statvfs(disk).f_favail - free, 0)):
        (disk / "names" / str(number)).touch()


def _sweep(tmp_path: Path, disk: Path, swap: Swap, steps: range, fault: str) -> None:
    trial = Trial.on(disk, tmp_path, swap)
    numbers: set[int] = set()

    def mended() -> None:
        (disk / "filler").unlink(missing_ok=True)
        shutil.rmtree(disk / "names", ignore_errors=True)

    filling = fill_names if "inode" in fault else fill
    for left in steps:
        trial.under(partial(filling, disk, left), mended, numbers)
    trial.publisher.close()
    assert trial.failed, "there was room all the time"
    assert trial.done, "there was never room"
    assert numbers <= {errno.ENOSPC, errno.EDQUOT, 0}
    tally(fault, len(steps), PROMISE)


SAMPLE_OF_BYTES = range(0, 96 * KiB, 16 * KiB)
EVERY_BLOCK = range(0, 128 * KiB, 4 * KiB)


@pytest.mark.root
@pytest.mark.parametrize("swap", SWAPS)
def test_full_at_some_points(tmp_path: Path, swap: Swap) -> None:
    with tmpfs(tmp_path / "disk", "size=2m") as disk:
        _sweep(tmp_path, disk, swap, SAMPLE_OF_BYTES, "disk full after so many bytes")


@pytest.mark.root
@pytest.mark.exhaustive
@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs"])
def test_full_at_every_block(tmp_path: Path, swap: Swap, kind: str) -> None:
    if kind == "tmpfs":
        with tmpfs(tmp_path / "disk", "size=2m") as disk:
            _sweep(tmp_path, disk, swap, EVERY_BLOCK, "disk full after so many bytes")
        return
    steps = EVERY_BLOCK if kind == "ext4" else range(0, 8 * MiB, 256 * KiB)
    make = ("-m", "0") if kind == "ext4" else ()  # else root has some blocks more
    with made(tmp_path / "fs", Kind(kind, make=make)) as mounted:
        _sweep(tmp_path, mounted.path, swap, steps, "disk full after so many bytes")


@pytest.mark.root
@pytest.mark.parametrize("swap", SWAPS)
def test_no_inodes_left(tmp_path: Path, swap: Swap) -> None:
    with tmpfs(tmp_path / "disk", "size=8m", "nr_inodes=200") as disk:
        _sweep(tmp_path, disk, swap, range(0, 16, 3), "no inodes left after so many")


@pytest.mark.root
@pytest.mark.exhaustive
@pytest.mark.parametrize("swap", SWAPS)
def test_no_inodes_left_on_ext4(tmp_path: Path, swap: Swap) -> None:
    with made(tmp_path / "fs", Kind("ext4", make=("-N", "256"))) as mounted:
        _sweep(tmp_path, mounted.path, swap, range(16), "no inodes left after so many")


@pytest.mark.root
@pytest.mark.exhaustive
def test_a_quota(tmp_path: Path) -> None:
    """Of btrfs, which every kernel has; those of ext4 and xfs are often left out."""
    if shutil.which("btrfs") is None:
        pytest.skip("btrfs is not installed")
    with made(tmp_path / "fs", Kind("btrfs")) as mounted:
        disk = mounted.path / "limited"
        for command in (
            ["quota", "enable", str(mounted.path)],
            ["subvolume", "create", str(disk)],
        ):
            done = subprocess.run(["btrfs", *command], check=False, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"btrfs {command[0]}: {done.stderr.strip()}")
        identify = ["btrfs", "inspect-internal", "rootid", str(disk)]
        group = f"0/{subprocess.run(identify, check=True, capture_output=True, text=True).stdout.strip()}"
        trial = Trial.on(disk, tmp_path, "symlink", model_bytes=300 * KiB)
        numbers: set[int] = set()

        def limit(to: str) -> None:
            command = ["btrfs", "qgroup", "limit", to, group, str(mounted.path)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

        steps = range(400, 1600, 100)
        for left in steps:
            trial.under(partial(limit, f"{left}K"), partial(limit, "none"), numbers)
        trial.publisher.close()
        assert trial.failed
        assert numbers <= {errno.EDQUOT, errno.ENOSPC}
        tally("quota used up", len(steps), PROMISE)


@pytest.mark.root
@pytest.mark.parametrize("swap", SWAPS)
def test_read_only_in_the_middle(tmp_path: Path, swap: Swap) -> None:
    with made(tmp_path / "fs", Kind("ext4")) as mounted:
        trial = Trial.on(mounted.path, tmp_path, swap)
        trial.publisher.close()
        fresh = trial.publisher
        fresh.start(swap)
        fresh.close()  # a file that is open for writing keeps a file system writable
        mounted.remount("ro")
        with pytest.raises(OSError, match="Read-only") as caught:
            fresh.start(swap)
        assert caught.value.errno == errno.EROFS
        assert judge(fresh.folder.path, fresh.generations, recovered=False) == []
        mounted.remount("rw")
        fresh.start(swap)
        fresh.publish(swap)
        fresh.close()
        assert judge(fresh.folder.path, fresh.generations) == []
        tally("file system read-only", 1, _WELL)


@pytest.mark.root
def test_unmounted_and_mounted_again(tmp_path: Path) -> None:
    """The empty mount point is not the folder: nothing is published into it, by daemon nor command."""
    build("default", tmp_path / "runs/model-best")
    (tmp_path / "models").mkdir()
    with made(tmp_path / "fs", Kind("ext4", size_bytes=96 * MiB)) as mounted:
        config = configure(tmp_path, deploy=str(mounted.path / "products"))
        deploy = mounted.path / "products"
        with Daemon(config) as daemon:
            daemon.wait_for("release.published")
            first = live(deploy)
            mounted.unmount(lazily=True)
            asked = run("snapshot", "products", "--force", config=config)
            assert asked.returncode == 1
            assert "was on another disk" in asked.stderr
            assert not list(mounted.path.iterdir())
            mounted.mount()
            assert live(deploy) == first
            asked = run("snapshot", "products", "--force", config=config)
            assert asked.returncode == 0, asked.stderr
        assert judge(deploy, [generation(tmp_path / "runs/model-best")]) == []
        mounted.unmount()
        (remembered,) = (tmp_path / "var/folders").glob("*.json")
        asked = run("snapshot", "products", config=config)
        assert asked.returncode == 1
        assert f"delete {remembered}" in asked.stderr
        assert not list(mounted.path.iterdir())
        remembered.unlink()
        assert run("snapshot", "products", config=config).returncode == 0
        assert judge(deploy) == []
        shutil.rmtree(deploy)
        mounted.mount()
    tally("deployment folder unmounted and mounted again", 2, "nothing goes into the empty mount point")


@pytest.mark.parametrize(
    "number",
    [
        errno.ESTALE,
        *(
            pytest.param(other, marks=pytest.mark.exhaustive)
            for other in (errno.EIO, errno.ENOENT, errno.EACCES, errno.ETIMEDOUT)
        ),
    ],
)
@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("happens", [False, True], ids=["refused", "done all the same"])
def test_renames_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, swap: Swap, happens: bool
) -> None:
    """Also as over NFS, where a rename may be done though its answer was lost."""
    trial = Trial.on(tmp_path, tmp_path, swap)
    trial.publisher.publish(swap)
    cases = 0
    for failing in range(1, 20):
        calls = iter(range(1, 1000))

        def failed(
            original: Callable[..., Any], *args: Any, failing: int = failing, calls: Any = calls
        ) -> Any:
            if next(calls) != failing:
                return original(*args)
            if happens:
                original(*args)
            raise OSError(number, os.strerror(number), os.fspath(args[0]))

        with monkeypatch.context() as patched:

            def fault(patched: Any = patched, failed: Any = failed) -> None:
                rename, flagged = os.rename, durability._rename
                patched.setattr(os, "rename", lambda *args: failed(rename, *args))
                patched.setattr(durability, "_rename", lambda *args: failed(flagged, *args))

            trial.under(fault, patched.undo, set())
        cases += 1
        if next(calls) <= failing:
            break
    trial.publisher.close()
    assert trial.failed >= 2
    tally("a rename that fails, or is done though it seems to fail", cases, PROMISE)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO, errno.EOPNOTSUPP])
def test_a_lock_that_can_not_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Without a lock nobody works on a folder: it is an error, and not somebody who holds it."""
    publisher = Publisher(tmp_path / "products", tmp_path / "checkpoint")
    publisher.folder.prepare()

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", failing)
        with pytest.raises(OSError, match=os.strerror(number)) as caught, publisher.folder.lock("a test"):
            pass
    assert not isinstance(caught.value, FolderBusy)
    tally("flock fails", 1, "nobody works on a folder without its lock")


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, swap: Swap
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", failing)
    publisher = Publisher(tmp_path / "products", tmp_path / "checkpoint")
    publisher.start(swap)
    for _ in range(3):
        publisher.publish(swap)
    publisher.prune()
    publisher.close()
    assert judge(publisher.folder.path, publisher.generations) == []
    tally("file system without hard links", 3, "releases are copied")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def failing(a: Path, b: Path, flags: int, real: Callable[..., None] = durability._rename) -> None:
        if flags == 2:
            raise OSError(number, os.strerror(number), os.fspath(a), None, os.fspath(b))
        real(a, b, flags)

    trial = Trial.on(tmp_path, tmp_path, "exchange")
    with monkeypatch.context() as patched:
        trial.under(
            lambda: patched.setattr(durability, "_rename", failing), patched.undo, numbers := set[int]()
        )
        assert numbers == {number}
        patched.setattr(durability, "_rename", failing)
        assert not current.supports_exchange(tmp_path)
    trial.publisher.close()
    tally("file system without exchange", 1, _WELL)
