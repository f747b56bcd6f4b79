from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.errors import Vanished
from spancat_daemon.release import lease
from spancat_daemon.release.survey import names_in
from tests.integration.release.fakes import Bench, whole

if TYPE_CHECKING:
    from spancat_daemon.release.folder import Release
    from spancat_daemon.release.swap import Kind


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.at(tmp_path / "models")


def test_a_lease_holds_until_it_is_let_go(bench: Bench) -> None:
    release = bench.publish().release
    assert not lease.is_leased(release.path)
    with lease.take(release.path) as first, lease.take(bench.folder.current) as second:
        assert lease.is_leased(release.path)
        assert lease.lock_out(release.path) is None
        assert first.manifest() == second.manifest() == release.manifest
        first.release()
        assert lease.is_leased(release.path)
    assert not lease.is_leased(release.path)


def test_the_kernel_lets_go_for_the_dead_and_shells_can_hold_too(bench: Bench) -> None:
    release = bench.publish().release
    command = [
        "flock",
        "--shared",
        str(bench.folder.current / "release.json"),
        "sh",
        "-c",
        "echo held; exec cat",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert lease.is_leased(release.path)
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait()
    assert not lease.is_leased(release.path)


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_a_lease_on_current_stays_in_its_release_over_swaps(bench: Bench, kind: Kind) -> None:
    first = bench.publish(kind=kind).release
    with lease.take(bench.folder.current) as held:
        for _ in range(3):
            bench.publish(kind=kind)
        assert whole(held.directory_fd) == held.manifest() == first.manifest
        assert lease.is_leased(bench.folder.releases_path / first.id)


def test_there_may_be_nothing_to_hold(bench: Bench) -> None:
    for path in (bench.folder.current, bench.folder.releases_path / "gone", bench.folder.releases_path):
        with pytest.raises(Vanished):
            lease.take(path)
        assert not lease.is_leased(path)
    bench.folder.current.symlink_to("releases/gone")
    with pytest.raises(Vanished):
        lease.take(bench.folder.current)


def test_who_keeps_all_readers_out_is_told_of_after_half_a_minute(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = bench.publish().release
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    with (release.path / "release.json").open("rb") as keeping:
        fcntl.flock(keeping, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"exclusive lock on release\.json"):
            lease.take(bench.folder.current)
        assert sum(waited) == pytest.approx(30)
        # Whoever does it for as long as it takes to prune is waited for
        monkeypatch.setattr("time.sleep", lambda _s: fcntl.flock(keeping, fcntl.LOCK_UN))
        with lease.take(bench.folder.current) as held:
            assert held.manifest() == release.manifest


def test_one_that_is_pruned_between_open_and_lock_is_not_held(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = bench.publish().release
    flock = fcntl.flock

    def pruned_first(fd: int, operation: int) -> None:
        if release.path.exists():
            release.path.rename(bench.folder.trash_path / "x.1")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", pruned_first)
    with pytest.raises(Vanished):
        lease.take(release.path)


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_current_that_is_swapped_between_open_and_lock_is_taken_anew(
    bench: Bench, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish(kind=kind)
    flock = fcntl.flock
    later: list[Release] = []

    def swapped_first(fd: int, operation: int) -> None:
        if not later:
            later.append(bench.publish(kind=kind).release)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", swapped_first)
    before = len(names_in(Path("/proc/self/fd")))
    with lease.take(bench.folder.current) as held:
        assert held.manifest() == later[0].manifest
    assert len(names_in(Path("/proc/self/fd"))) == before
