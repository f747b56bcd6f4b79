from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.release.durability import Durability
from spancat_daemon.release.folder import DeploymentFolder, FolderBusy, NoSuchRelease, NotOurs, unique_bytes
from spancat_daemon.release.survey import names_in
from tests.integration.release.fakes import VOCABULARY, Bench

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.at(tmp_path / "models")


def test_prepare_creates_everything_once_and_durably(tmp_path: Path) -> None:
    synced: list[str] = []

    class Noting(Durability):
        def sync_directory(self, fd: int) -> None:
            synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))

    folder = DeploymentFolder(tmp_path / "a" / "b")
    folder.prepare(Noting())
    assert sorted(names_in(folder.path)) == [".spancat-daemon", "releases"]
    assert names_in(folder.state_path) == ["incoming", "pins", "rejected", "staging", "trash"]
    assert {str(tmp_path), str(tmp_path / "a"), str(folder.path), str(folder.state_path)} == set(synced)
    synced.clear()
    folder.prepare(Noting())
    assert synced == []


def a_directory(current: Path) -> None:
    current.mkdir()
    (current / "config.cfg").write_text("mine")


def a_file(current: Path) -> None:
    current.write_text("mine")


def a_capistrano_link(current: Path) -> None:
    (current.parent / "releases" / "20261122").mkdir(parents=True)
    current.symlink_to("releases/20261122")


def a_link_out(current: Path) -> None:
    current.symlink_to("/usr")


def a_link_through(current: Path) -> None:
    current.symlink_to("releases/../../000001-20261122T113045Z-aaaaaaaa")


@pytest.mark.parametrize("make", [a_directory, a_file, a_capistrano_link, a_link_out, a_link_through])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = DeploymentFolder(tmp_path)
    make(folder.current)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NotOurs, match=r"current: .*spancat-daemon"):
        folder.prepare()
    with pytest.raises(NotOurs):
        folder.survey()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("mine")
    with pytest.raises((NotOurs, NotADirectoryError)):
        DeploymentFolder(tmp_path / "models" / "products").prepare()


def test_an_absolute_link_to_a_release_is_understood(bench: Bench) -> None:
    live = bench.publish().release
    bench.folder.current.unlink()
    bench.folder.current.symlink_to(live.path.absolute())
    assert bench.folder.live() == live


def hold(path: Path, connection: Connection) -> None:
    with DeploymentFolder(path).lock("spancat-daemon run"):
        connection.send(os.getpid())
        connection.recv()


def test_a_second_holder_is_told_who_holds_it(bench: Bench) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(bench.folder.path, theirs))
    process.start()
    pid = ours.recv()
    with (
        pytest.raises(FolderBusy, match=rf"spancat-daemon run \(pid {pid} on .*, since 20") as caught,
        bench.folder.lock("spancat-daemon snapshot"),
    ):
        pass
    assert caught.value.where == str(bench.folder.path)
    process.kill()
    process.join()
    with bench.folder.lock("spancat-daemon snapshot"):
        pass
    ours.close()
    theirs.close()
    process.close()


def test_a_lock_file_that_was_deleted_excludes_all_the_same(bench: Bench) -> None:
    with bench.folder.lock("one"):
        pass
    bench.folder.lock_path.unlink()
    with bench.folder.lock("two"), pytest.raises(FolderBusy, match="two"), bench.folder.lock("three"):
        pass


def test_a_lock_file_that_is_deleted_while_it_is_taken_is_taken_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, iter(range(99))

    def deleted_first(fd: int, operation: int) -> None:
        if next(calls) == 0:
            bench.folder.lock_path.unlink()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", deleted_first)
    with bench.folder.lock("one"), pytest.raises(FolderBusy, match="one"), bench.folder.lock("two"):
        pass


def test_the_lock_is_not_inherited(bench: Bench) -> None:
    with bench.folder.lock("one"):
        for fd in names_in(Path("/proc/self/fd")):
            try:
                target = str(Path(f"/proc/self/fd/{fd}").readlink())
            except FileNotFoundError:
                continue
            if target == str(bench.folder.lock_path):
                assert not os.get_inheritable(int(fd))
                break
        else:
            pytest.fail("nothing holds the lock file open")


def test_releases_come_newest_first_and_what_is_broken_or_foreign_is_told(bench: Bench) -> None:
    ids = [bench.publish().release.id for _ in range(3)]
    releases = bench.folder.releases_path
    damaged = releases / ids[1] / "release.json"
    damaged.unlink()
    damaged.write_text("{}")
    (releases / "notes.txt").write_text("mine")
    (releases / "backup").mkdir()
    copy = releases / "000009-20261122T113045Z-aaaaaaaa"
    shutil.copytree(releases / ids[0], copy)
    (releases / "000008-20261122T113045Z-aaaaaaaa").symlink_to("/usr")
    survey = bench.folder.survey()
    assert [release.id for release in survey.releases] == [ids[2], ids[0]]
    assert {path.name for path, _ in survey.broken} == {ids[1], copy.name}
    foreign = {"notes.txt", "backup", "000008-20261122T113045Z-aaaaaaaa"}
    assert {path.name for path in survey.foreign} == foreign
    assert survey.stray_links == survey.misnamed == ()


def test_of_two_copies_the_live_one_counts(bench: Bench) -> None:
    live = bench.publish(kind="exchange").release
    shutil.copytree(live.path, bench.folder.releases_path / live.id)
    survey = bench.folder.survey()
    assert survey.releases == (live,)
    assert [path for path, _ in survey.broken] == [bench.folder.releases_path / live.id]


def test_states_in_the_midst_of_an_exchange_are_understood(bench: Bench) -> None:
    first, second = bench.publish(kind="exchange").release, bench.publish(kind="exchange").release
    # the one that is to be live lies under the live one's name
    (bench.folder.releases_path / first.id).rename(bench.folder.releases_path / second.id)
    assert bench.folder.live() == second
    assert [release.id for release in bench.folder.releases()] == [second.id, first.id]
    assert bench.folder.find("1").path.name == second.id
    # a link on its way into current
    (bench.folder.releases_path / first.id).symlink_to(f"releases/{first.id}")
    assert [release.id for release in bench.folder.releases()] == [second.id, first.id]


def test_find(bench: Bench) -> None:
    first, second, third = (bench.publish().release for _ in range(3))
    for name in ("2", "000002", second.id, second.id[:20], "@1"):
        assert bench.folder.find(name).id == second.id, name
    assert bench.folder.find("@0").id == third.id
    assert bench.folder.find("@2").id == first.id
    with pytest.raises(NoSuchRelease, match="no @3: only 2"):
        bench.folder.find("@3")
    with pytest.raises(NoSuchRelease, match="several"):
        bench.folder.find("00000")
    with pytest.raises(NoSuchRelease, match=r"the newest are 000003-"):
        bench.folder.find("000004")
    for name in ("", "../..", "4", "@", "²"):
        with pytest.raises(NoSuchRelease):
            bench.folder.find(name)


def test_nothing_to_find(tmp_path: Path) -> None:
    folder = DeploymentFolder(tmp_path / "nothing")
    assert folder.live() is None
    assert folder.previous() is None
    assert folder.releases() == []
    assert folder.pins() == set()
    assert folder.next_sequence() == 1
    for name in ("1", "@0", "0"):
        with pytest.raises(NoSuchRelease):
            folder.find(name)


def test_previous_is_by_history_then_by_sequence(bench: Bench) -> None:
    first = bench.publish().release
    assert bench.folder.previous() is None
    second = bench.publish().release
    previous = bench.folder.previous()
    assert previous is not None
    assert previous.id == first.id
    bench.history.close()
    bench.folder.history_path.unlink()
    previous = bench.folder.previous()
    assert previous is not None
    assert previous.id == first.id
    assert second.id == bench.folder.find("@0").id


@pytest.mark.parametrize("where", ["releases", "staging", "trash", "rejected"])
def test_numbers_are_never_used_again(bench: Bench, where: str) -> None:
    bench.publish()
    directory = {
        "releases": bench.folder.releases_path,
        "staging": bench.folder.staging_path,
        "trash": bench.folder.trash_path,
        "rejected": bench.folder.rejected_path,
    }[where]
    assert bench.folder.next_sequence() == 2
    (directory / "000041-20261122T113045Z-aaaaaaaa.1a2b3c4d").mkdir()
    (directory / "not-a-release-99").mkdir()
    assert bench.folder.next_sequence() == 42


def test_numbers_of_what_the_history_names_are_not_used_again(bench: Bench) -> None:
    release = bench.publish(kind="exchange").release
    bench.history.append("intent", {"release": "000017-20261122T113045Z-aaaaaaaa"})
    bench.history.append("abort", {"release": "000017-20261122T113045Z-aaaaaaaa"})
    assert bench.folder.next_sequence() == 18
    bench.history.close()
    bench.folder.history_path.unlink()
    assert bench.folder.next_sequence() == release.sequence + 1


def test_pins(bench: Bench) -> None:
    release = bench.publish().release
    bench.folder.pin(release.id)
    bench.folder.pin(release.id)
    assert bench.folder.pins() == {release.id}
    bench.folder.unpin(release.id)
    bench.folder.unpin(release.id)
    assert bench.folder.pins() == set()
    with pytest.raises(NoSuchRelease):
        bench.folder.pin("../../outside")


def test_what_was_announced_is_remembered(bench: Bench) -> None:
    assert bench.folder.announced() == 0
    for seq in (7, 123456, 8):
        bench.folder.mark_announced(seq)
        assert bench.folder.announced() == seq
    bench.folder.announced_path.write_text("?")
    assert bench.folder.announced() == 0


def test_unique_bytes_leaves_out_what_others_share(bench: Bench) -> None:
    first, second = bench.publish(model=b"x" * 5000).release, bench.publish(model=b"y" * 7000).release
    for release, model in ((first, 5000), (second, 7000)):
        own = (release.path / "release.json").stat().st_size + (release.path / "config.cfg").stat().st_size
        assert unique_bytes(release.path) == own + model  # model.bin is the same file as spancat/model
    shutil.rmtree(first.path)
    assert unique_bytes(second.path) > 7000 + len(VOCABULARY)
