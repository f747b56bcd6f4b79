from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.release.history import HistoryBroken
from spancat_daemon.release.recovery import Recovered, faults, recover
from spancat_daemon.release.survey import NotOurs, names_in
from tests.integration.release.fakes import Bench, judge, stage

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.release.swap import Kind


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.at(tmp_path / "models")


def recovered(bench: Bench, **settings: Any) -> Recovered:
    """Recover, and see that a second time there is nothing left to do."""
    result = recover(bench.folder, history=bench.history, **settings)
    assert recover(bench.folder, history=bench.history, **settings).actions == ()
    return result


def only(result: Recovered) -> str:
    assert len(result.actions) == 1, result.actions
    return result.actions[0]


def test_nothing_to_do(bench: Bench) -> None:
    assert recovered(bench).actions == ()
    bench.publish()
    result = recovered(bench)
    assert (result.actions, result.record, result.records) == ((), None, ())


def test_leftovers_are_removed(bench: Bench) -> None:
    release = bench.publish().release
    stage(bench.folder, 2, b"half")
    (bench.folder.trash_path / "000001-x.1234").mkdir()
    (bench.folder.trash_path / "link").symlink_to(release.path)
    (bench.folder.path / ".current.99.abcd").symlink_to("releases/x")
    (bench.folder.releases_path / "000007-20261122T113045Z-aaaaaaaa").symlink_to("releases/whatever")
    assert len(recovered(bench).actions) == 4
    assert bench.folder.live() == release
    judge(bench.folder)


def test_a_user_directory_with_a_temporary_links_name_stays(bench: Bench) -> None:
    (bench.folder.path / ".current.backup").mkdir()
    assert recovered(bench).actions == ()
    assert (bench.folder.path / ".current.backup").is_dir()


def test_one_that_nobody_knew_goes(bench: Bench) -> None:
    release = bench.publish().release
    staged, manifest = stage(bench.folder, 2, b"two")
    staged.path.rename(bench.folder.releases_path / manifest.id)
    result = recovered(bench)
    assert result.records == ()
    assert manifest.id in result.actions[0]
    assert bench.folder.releases() == [release]
    judge(bench.folder)


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_a_swap_without_commit_is_committed_with_what_the_intent_said(bench: Bench, kind: Kind) -> None:
    first, second = bench.publish(kind=kind), bench.publish(kind=kind)
    lines = bench.folder.history_path.read_bytes().splitlines(keepends=True)
    bench.history.close()
    bench.folder.history_path.write_bytes(b"".join(lines[:-1]))
    bench.reopen()
    result = recovered(bench)
    assert only(result).startswith("committed")
    assert result.record is not None
    assert result.record.kind == "commit"
    assert result.record.data["recovered"] is True
    assert result.record.data["rule"] == "products"
    assert result.record.data["previous_release"] == first.release.id
    live = bench.folder.live()
    assert live is not None
    assert live.id == second.release.id
    judge(bench.folder)


def test_an_intent_without_swap_is_aborted(bench: Bench) -> None:
    first = bench.publish().release
    staged, manifest = stage(bench.folder, 2, b"two")
    staged.path.rename(bench.folder.releases_path / manifest.id)
    bench.history.append("intent", {"release": manifest.id, "previous_release": first.id})
    result = recovered(bench)
    assert result.record is not None
    assert result.record.kind == "abort"
    assert bench.folder.releases() == [first]
    judge(bench.folder)


def test_a_rollback_without_swap_is_aborted_and_its_release_stays(bench: Bench) -> None:
    first, second = bench.publish().release, bench.publish().release
    bench.history.append("intent", {"release": first.id, "previous_release": second.id})
    result = recovered(bench)
    assert result.record is not None
    assert result.record.kind == "abort"
    assert {release.id for release in bench.folder.releases()} == {first.id, second.id}
    judge(bench.folder)


def test_an_intent_while_someone_pointed_current_elsewhere(bench: Bench) -> None:
    first, second = bench.publish().release, bench.publish().release
    staged, manifest = stage(bench.folder, 3, b"three")
    staged.path.rename(bench.folder.releases_path / manifest.id)
    bench.history.append("intent", {"release": manifest.id, "previous_release": second.id})
    bench.folder.current.unlink()
    bench.folder.current.symlink_to(f"releases/{first.id}")
    result = recovered(bench)
    assert [record.kind for record in result.records] == ["abort", "recovered"]
    assert bench.history.live == first.id
    judge(bench.folder)


def test_current_changed_by_hand_is_accepted_and_recorded(bench: Bench) -> None:
    first, second = bench.publish().release, bench.publish().release
    bench.folder.current.unlink()
    bench.folder.current.symlink_to(f"releases/{first.id}")
    result = recovered(bench)
    assert "by hand" in only(result)
    assert result.record is not None
    assert (result.record.kind, result.record.data["release"]) == ("recovered", first.id)
    assert result.record.data["previous_release"] == second.id
    assert bench.history.live_order() == (first.id,)
    judge(bench.folder)


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_current_deleted_leads_again_to_what_was_live(bench: Bench, kind: Kind) -> None:
    bench.publish()
    live = bench.publish().release
    bench.folder.current.unlink()
    result = recovered(bench, kind=kind)
    assert "is missing" in only(result)
    assert result.record is not None
    assert result.record.kind == "recovered"
    now_live = bench.folder.live()
    assert now_live is not None
    assert now_live.id == live.id
    assert bench.folder.current.is_symlink() == (kind == "symlink")
    judge(bench.folder)


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_the_live_release_deleted_leads_to_the_newest_whole_one_that_was_live(
    bench: Bench, kind: Kind
) -> None:
    first, second, third = (bench.publish(kind=kind).release for _ in range(3))
    damaged = bench.folder.releases_path / second.id / "config.cfg"
    damaged.chmod(0o644)
    damaged.write_bytes(b"?" * damaged.stat().st_size)
    shutil.rmtree(third.path)
    result = recovered(bench, kind=kind)
    live = bench.folder.live()
    assert live is not None
    assert live.id == first.id
    assert [record.kind for record in result.records] == ["recovered", "pruned"]
    assert result.records[1].data["release"] == third.id


def test_everything_deleted_is_recorded_once(bench: Bench) -> None:
    release = bench.publish().release
    shutil.rmtree(release.path)
    result = recovered(bench)
    assert [record.kind for record in result.records] == ["recovered", "pruned"]
    assert bench.history.live is None
    bench.publish()
    judge(bench.folder)


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_a_lost_history_adopts_what_there_is(bench: Bench, kind: Kind) -> None:
    ids = [bench.publish(kind=kind).release.id for _ in range(3)]
    bench.folder.mark_announced(6)
    bench.history.close()
    bench.folder.history_path.unlink()
    bench.reopen()
    result = recovered(bench)
    assert "record 6" in only(result)
    assert bench.history.live == ids[2]
    assert bench.history.released() == set(ids)
    previous = bench.folder.previous()
    assert previous is not None
    assert previous.id == ids[1]
    assert bench.folder.announced() == bench.history.seq
    bench.publish(kind=kind)
    judge(bench.folder)


def test_one_release_and_a_lost_history_is_adopted_too(bench: Bench) -> None:
    release = bench.publish().release
    bench.history.close()
    bench.folder.history_path.unlink()
    bench.folder.current.unlink()
    bench.folder.mark_announced(2)
    bench.reopen()
    recover(bench.folder, history=bench.history)
    live = bench.folder.live()
    assert live is not None
    assert live.id == release.id


def test_a_history_cut_off_at_its_end_is_noticed(bench: Bench) -> None:
    first, second = bench.publish().release, bench.publish().release
    bench.folder.mark_announced(bench.history.seq)
    bench.history.close()
    lines = bench.folder.history_path.read_bytes().splitlines(keepends=True)
    bench.folder.history_path.write_bytes(b"".join(lines[:2]))
    bench.reopen()
    result = recovered(bench)
    assert "record 4 was logged" in only(result)
    assert bench.history.live == second.id
    assert bench.history.released() == {first.id, second.id}
    judge(bench.folder)


def test_releases_put_back_by_hand_are_adopted(bench: Bench, tmp_path: Path) -> None:
    first = bench.publish().release
    bench.publish()
    first.path.rename(tmp_path / "kept")
    assert "is gone" in only(recovered(bench))
    (tmp_path / "kept").rename(first.path)
    assert "adopted" in only(recovered(bench))
    judge(bench.folder)


def test_a_torn_history_is_repaired_and_told(bench: Bench) -> None:
    bench.publish()
    bench.history.close()
    with bench.folder.history_path.open("ab") as file:
        file.write(b'{"half')
    bench.reopen()
    assert "unfinished last line" in only(recovered(bench))


def test_a_broken_history_stops_it(bench: Bench) -> None:
    bench.publish()
    bench.history.close()
    broken = bench.folder.history_path.read_bytes().replace(b"products", b"producks")
    bench.folder.history_path.write_bytes(broken)
    with pytest.raises(HistoryBroken):
        bench.reopen()


def test_what_is_foreign_or_broken_is_told_and_left_alone(bench: Bench) -> None:
    first = bench.publish().release
    bench.publish()
    mine = bench.folder.releases_path / "mine"
    mine.mkdir()
    manifest = first.path / "release.json"
    manifest.unlink()
    manifest.write_text("{")
    result = recovered(bench)
    assert result.foreign == (mine,)
    assert [path for path, _ in result.broken] == [first.path]
    assert result.actions == ()
    assert mine.is_dir()
    assert names_in(first.path)


def test_current_that_became_someone_elses_is_left_alone(bench: Bench) -> None:
    bench.publish()
    bench.folder.current.unlink()
    bench.folder.current.mkdir()
    (bench.folder.current / "mine").write_text("mine")
    with pytest.raises(NotOurs):
        recover(bench.folder, history=bench.history)
    assert (bench.folder.current / "mine").read_text() == "mine"


def test_an_exchange_that_stopped_after_the_exchange_in_the_old_way_is_put_right(bench: Bench) -> None:
    first, second = bench.publish(kind="exchange").release, bench.publish(kind="exchange").release
    (bench.folder.releases_path / first.id).rename(bench.folder.releases_path / second.id)
    assert first.id in only(recovered(bench))
    assert bench.folder.find("1").path.name == first.id
    judge(bench.folder)


def test_faults_are_found_by_digest(bench: Bench) -> None:
    release = bench.publish().release
    assert faults(release) == []
    (release.path / "config.cfg").unlink()
    model = release.path / "spancat/model"
    model.chmod(0o644)
    model.write_bytes(b"x" * model.stat().st_size)
    assert sorted(faults(release)) == [
        "config.cfg is missing",
        "model.bin has changed",
        "spancat/model has changed",
    ]
