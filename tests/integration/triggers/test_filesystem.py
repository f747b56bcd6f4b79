"""Every way in which a checkpoint changes, on a real file system with real events."""

from __future__ import annotations

import os
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.triggers import footprint
from spancat_daemon.triggers.filesystem import FilesystemTrigger, Watched
from spancat_daemon.triggers.polling import signature
from tests.integration.triggers.watching import (
    Watching,
    descriptors_in_use,
    replace_as_trainer,
    wait_for,
    watching,
    write_checkpoint,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def best(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "one" / "model-best"
    write_checkpoint(path)
    return path


@pytest.mark.parametrize("name", ["config.cfg", "spancat/model", "vocab/lookups.bin"])
def test_a_file_rewritten_in_place_is_seen(best: Path, tmp_path: Path, name: str) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        told.dirtied_by(partial((best / name).write_bytes, b"2"), at_least={"one"})
        assert told.told("watch.started")[0].fields["by"] == "events"


def test_changes_of_times_alone_are_seen(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        told.dirtied_by(partial(os.utime, best / "vocab/lookups.bin", (1, 1)), at_least={"one"})


@pytest.mark.parametrize("poll_s", [0.0, 0.01], ids=["events", "polling"])
@pytest.mark.parametrize("there", [True, False], ids=["there", "not yet"])
def test_a_file_beside_it_that_is_renamed_in_is_seen(
    best: Path, tmp_path: Path, poll_s: float, there: bool
) -> None:
    if not there:
        shutil.rmtree(best)
    begun, told_by = best.with_name("begun"), best.with_name("written.json")
    asked = Watched("one", best, poll_s=poll_s, beside=frozenset({told_by.name}))
    with watching(tmp_path, asked) as told:

        def say() -> None:
            begun.write_bytes(b"{}")
            begun.replace(told_by)

        for _ in range(3):
            told.dirtied_by(say, at_least={"one"})
        told.dirtied_by(told_by.unlink, at_least={"one"})
        if not poll_s:
            told.left_clean_by(partial(best.with_name("log").write_bytes, b"1"), "one")


@pytest.mark.parametrize("poll_s", [0.0, 0.01], ids=["events", "polling"])
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_of_a_link_a_file_beside_it_and_one_beside_where_it_leads_are_seen(
    best: Path, tmp_path: Path, poll_s: float, absolute: bool
) -> None:
    link = tmp_path / "live" / "latest"
    link.parent.mkdir()
    link.symlink_to(best if absolute else f"../{best.relative_to(tmp_path)}")
    with watching(tmp_path, Watched("one", link, poll_s=poll_s, beside=frozenset({"written.json"}))) as told:
        for folder in (best.parent, link.parent, best.parent):
            begun = folder / "begun"
            begun.write_bytes(b"{}")
            told.dirtied_by(partial(begun.replace, folder / "written.json"), at_least={"one"})
        if not poll_s:
            told.left_clean_by(partial(best.with_name("log").write_bytes, b"1"), "one")


def test_a_checkpoint_removed_and_copied_anew_stays_watched(best: Path, tmp_path: Path) -> None:
    last = best.with_name("model-last")
    write_checkpoint(last, b"2")
    with watching(tmp_path, Watched("one", best)) as told:
        watches = told.watches
        for _ in range(20):
            told.dirtied_by(partial(replace_as_trainer, best, last), at_least={"one"})
            told.dirtied_by(partial((best / "vocab/lookups.bin").write_bytes, b"3"), at_least={"one"})
        assert told.watches == watches
        assert not told.told("watch.lost")  # a trainer does this at every evaluation


def test_nothing_gets_lost_in_a_storm_of_replacements(best: Path, tmp_path: Path) -> None:
    last = best.with_name("model-last")
    write_checkpoint(last, b"2")
    with watching(tmp_path, Watched("best", best), Watched("last", last)) as told:
        for _ in range(150):
            replace_as_trainer(best, last)
        told.barrier()
        assert told.watches == 1 + len({p for p in best.rglob("*") if p.is_dir()}) * 2 + len(best.parts) + 1
        for directory in (best, best / "vocab", best / "spancat"):
            told.dirtied_by(partial((directory / "new").write_bytes, b""), at_least={"best"})


def test_a_path_that_comes_into_being_later_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c" / "model-last"
    with watching(tmp_path, Watched("late", path)) as told:
        assert told.told("watch.started")[0].fields["exists"] is False
        told.dirtied_by(partial(write_checkpoint, path), at_least={"late"})
        told.dirtied_by(partial((path / "spancat/model").write_bytes, b"2"), at_least={"late"})
        assert told.told("watch.restored")[0].fields["path"] == str(path.parent)


def test_a_path_built_step_by_step_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model-last"
    with watching(tmp_path, Watched("late", path)) as told:
        for directory in (path.parents[1], path.parent, path):
            told.dirtied_by(directory.mkdir, at_least={"late"})


def test_new_subdirectories_are_watched(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        told.dirtied_by(partial((best / "ner" / "deep").mkdir, parents=True), at_least={"one"})
        told.dirtied_by(partial((best / "ner" / "deep" / "model").write_bytes, b""), at_least={"one"})


def test_the_folder_around_it_deleted_and_made_anew(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        told.dirtied_by(partial(shutil.rmtree, tmp_path / "runs"), at_least={"one"})
        assert told.wait_told("watch.lost").fields["path"] == str(best.parent)
        told.dirtied_by(partial(write_checkpoint, best), at_least={"one"})
        told.wait_told("watch.restored")
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"2"), at_least={"one"})


def test_a_deleted_folder_that_somebody_still_holds_open(best: Path, tmp_path: Path) -> None:
    # The kernel reports its end only when the last descriptor is closed.
    runs = best.parent.parent
    held = [os.open(path, os.O_RDONLY) for path in (best.parent, runs)]
    try:
        with watching(tmp_path, Watched("one", best)) as told:
            for delete in (partial(shutil.rmtree, best), best.parent.rmdir, runs.rmdir):
                told.dirtied_by(delete, at_least={"one"})
            told.wait_told("watch.lost")
            for directory in (runs, best.parent, best):
                told.dirtied_by(directory.mkdir, at_least={"one"})
            told.dirtied_by(partial((best / "config.cfg").write_bytes, b"2"), at_least={"one"})
    finally:
        for fd in held:
            os.close(fd)


def test_what_happens_before_a_new_folder_is_watched_is_not_lost(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        with told.trigger._lock:  # keeps the new folder from being watched yet
            (best / "new").mkdir()
            wait_for(lambda: told.dirty["one"] > 0, "dirty")
            told.dirty.clear()
            (best / "new" / "file").write_bytes(b"")
        wait_for(lambda: told.dirty["one"] > 0, "dirty again")


def test_a_folder_that_gets_its_predecessors_inode_number(best: Path, tmp_path: Path) -> None:
    folder = best / "vocab"
    with watching(tmp_path, Watched("one", best)) as told:
        for _ in range(200):
            inode = folder.stat().st_ino
            with told.trigger._lock:
                shutil.rmtree(folder)
                folder.mkdir()
            told.dirtied_by(partial((folder / "lookups.bin").write_bytes, b""), at_least={"one"})
            if folder.stat().st_ino == inode:
                break
        assert told.watches == len(best.parts) + 2 + 1


def test_an_ancestor_moved_away_and_another_moved_in(best: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_checkpoint(other / "one" / "model-best", b"other")
    with watching(tmp_path, Watched("one", best)) as told:
        told.dirtied_by(partial((tmp_path / "runs").rename, tmp_path / "gone"), at_least={"one"})
        told.wait_told("watch.lost")
        told.left_clean_by(
            partial((tmp_path / "gone/one/model-best/config.cfg").write_bytes, b"stale"), key="one"
        )
        told.dirtied_by(partial(other.rename, tmp_path / "runs"), at_least={"one"})
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"2"), at_least={"one"})


def test_the_checkpoint_itself_moved_away_and_in(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        told.dirtied_by(partial(best.rename, tmp_path / "aside"), at_least={"one"})
        told.left_clean_by(partial((tmp_path / "aside/config.cfg").write_bytes, b"stale"), key="one")
        told.dirtied_by(partial((tmp_path / "aside").rename, best), at_least={"one"})
        told.dirtied_by(partial((best / "vocab/lookups.bin").write_bytes, b"2"), at_least={"one"})


def _relink(link: Path, target: str) -> None:
    temporary = link.with_name("link.new")
    temporary.symlink_to(target)
    temporary.replace(link)


def test_links_on_the_way_are_followed_and_their_re_targeting_seen(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_checkpoint(tmp_path / "store" / name / "model-best")
    (tmp_path / "runs").mkdir()
    link = tmp_path / "runs" / "latest"
    link.symlink_to("../store/one")
    with watching(tmp_path, Watched("latest", link / "model-best")) as told:
        for name in ("one", "two", "one"):
            if name != link.readlink().name:
                told.dirtied_by(partial(_relink, link, f"../store/{name}"), at_least={"latest"})
            file = tmp_path / "store" / name / "model-best" / "vocab" / "lookups.bin"
            told.dirtied_by(partial(file.write_bytes, b"2"), at_least={"latest"})
        told.left_clean_by(
            partial((tmp_path / "store/two/model-best/config.cfg").write_bytes, b"2"), key="latest"
        )


def test_a_checkpoint_that_is_a_link(best: Path, tmp_path: Path) -> None:
    link = tmp_path / "live"
    link.symlink_to(best)
    with watching(tmp_path, Watched("live", link)) as told:
        told.dirtied_by(partial((best / "spancat/model").write_bytes, b"2"), at_least={"live"})
        told.dirtied_by(link.unlink, at_least={"live"})
        told.dirtied_by(partial(link.symlink_to, best), at_least={"live"})
        told.dirtied_by(partial(shutil.rmtree, best), at_least={"live"})
        told.dirtied_by(partial(write_checkpoint, best), at_least={"live"})


def test_a_folder_replaced_by_a_link(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:

        def replace() -> None:
            (tmp_path / "runs").rename(tmp_path / "disk2")
            (tmp_path / "runs").symlink_to(tmp_path / "disk2")

        told.dirtied_by(replace, at_least={"one"})
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"2"), at_least={"one"})


def test_links_that_lead_in_a_circle_are_no_trap(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with watching(tmp_path, Watched("circle", tmp_path / "a" / "model-best")) as told:
        told.dirtied_by((tmp_path / "a").unlink, at_least={"circle"})


def test_globbed_runs_come_change_and_go(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with watching(tmp_path, Watched("all", runs, pattern=f"{runs}/*/model-best")) as told:
        told.dirtied_by(runs.mkdir, at_least={"all"})
        told.dirtied_by(partial(write_checkpoint, runs / "1" / "model-best"), at_least={"all"})
        told.dirtied_by(partial((runs / "2").mkdir), at_least={"all"})
        told.dirtied_by(partial(write_checkpoint, runs / "2" / "model-best"), at_least={"all"})
        file = runs / "2" / "model-best" / "vocab" / "lookups.bin"
        told.dirtied_by(partial(file.write_bytes, b"2"), at_least={"all"})
        told.left_clean_by(partial((runs / "2" / "training.log").write_bytes, b"x"), key="all")
        told.left_clean_by(partial((runs / ".hidden").write_bytes, b"x"), key="none")
        told.dirtied_by(partial(shutil.rmtree, runs / "1"), at_least={"all"})
        told.dirtied_by(partial(shutil.rmtree, runs), at_least={"all"})
        assert told.told("watch.lost")


def test_a_glob_can_tell_only_of_coming_and_going(best: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    glob = Watched("all", runs, pattern=f"{runs}/*/model-best", contents=False)
    with watching(tmp_path, glob, Watched("all/one", best)) as told:
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"2"), at_least={"all/one"})
        assert told.dirty["all"] == 0
        told.dirtied_by(partial(shutil.rmtree, best), at_least={"all", "all/one"})
        told.dirtied_by(partial(write_checkpoint, best), at_least={"all", "all/one"})
        told.dirtied_by(partial(write_checkpoint, runs / "two/model-best"), at_least={"all"})


def test_neighbours_are_neither_watched_nor_heard(best: Path, tmp_path: Path) -> None:
    for number in range(50):
        (best.parent / "huge" / str(number)).mkdir(parents=True)
    with watching(tmp_path, Watched("one", best)) as told:
        assert told.watches == len(best.parts) + 2 + 1  # the way, two subdirectories, the canary
        told.left_clean_by(partial((best.parent / "training.log").write_bytes, b"x"), key="one")
        told.left_clean_by(partial(shutil.rmtree, best.parent / "huge"), key="one")
        told.left_clean_by(partial((best.parent.parent / "two").mkdir), key="one")


def test_a_changed_set_leaves_the_others_alone(best: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "two" / "model-best"
    write_checkpoint(other)
    with watching(tmp_path, Watched("one", best), Watched("two", other)) as told:
        both = told.watches
        assert told.trigger._directories is not None
        held = told.trigger._directories.watched_by("one")
        told.trigger.set_watched([Watched("one", best)])
        assert told.trigger._directories.watched_by("one") == held
        assert told.watches == both - 4  # two's folder, checkpoint and its two subdirectories
        told.left_clean_by(partial((other / "config.cfg").write_bytes, b"2"), key="two")
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"2"), at_least={"one"})
        told.trigger.set_watched([Watched("one", other)])
        told.dirtied_by(partial((other / "config.cfg").write_bytes, b"3"), at_least={"one"})
        told.left_clean_by(partial((best / "config.cfg").write_bytes, b"3"), key="one")
        assert [event.key for event in told.told("watch.started")] == ["one", "two", "one"]


def test_two_keys_can_share_a_checkpoint(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best), Watched("other", best)) as told:
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"2"), at_least={"one", "other"})
        told.trigger.set_watched([Watched("other", best)])
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"3"), at_least={"other"})
        assert told.dirty["one"] == 0


def test_what_can_not_be_watched_is_refused(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path) as told:
        with pytest.raises(ValueError, match="same key"):
            told.trigger.set_watched([Watched("one", best), Watched("one", tmp_path)])
        with pytest.raises(ValueError, match="not absolute: runs/x"):
            told.trigger.set_watched([Watched("one", Path("runs/x"))])


def test_polling_sees_the_same_without_events(best: Path, tmp_path: Path) -> None:
    last = best.with_name("model-last")
    write_checkpoint(last)
    with watching(tmp_path, Watched("nfs", best, poll_s=0.01)) as told:
        assert told.trigger._directories is not None
        assert told.trigger._directories.count() == 1  # the canary
        assert told.told("watch.started")[0].fields["by"] == "polling"
        poller = told.trigger._poller
        assert poller is not None

        def changed_by(action: Callable[[], object]) -> None:
            polled = poller._polled["nfs"]
            wait_for(lambda: polled.last == signature(polled.way)[0], "a poll of the present state")
            for _ in range(2):
                due = polled.due
                wait_for(lambda due=due: polled.due > due, "another poll")  # type: ignore[misc]
            told.dirty.clear()
            action()
            wait_for(lambda: told.dirty["nfs"] > 0, "dirty")

        changed_by(partial((best / "vocab/lookups.bin").write_bytes, b"4"))
        changed_by(partial(replace_as_trainer, best, last))
        changed_by(partial(os.utime, best / "config.cfg", (1, 1)))
        changed_by(partial(shutil.rmtree, best.parent))
        told.wait_told("watch.lost")
        changed_by(partial(write_checkpoint, best))
        told.wait_told("watch.restored")
        told.trigger.set_watched([])
        wait_for(lambda: poller._thread is None, "the poller's end")


def test_a_polled_glob_can_tell_only_of_coming_and_going(best: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    glob = Watched("all", runs, pattern=f"{runs}/*/model-best", poll_s=0.01, contents=False)
    with watching(tmp_path, glob, Watched("all/one", best, poll_s=0.01)) as told:
        wait_for(lambda: set(told.dirty) == {"all", "all/one"}, "the first polls")
        told.dirty.clear()
        (best / "config.cfg").write_bytes(b"2")
        wait_for(lambda: told.dirty["all/one"] > 0, "dirty")
        write_checkpoint(runs / "two" / "model-best")
        wait_for(lambda: told.dirty["all"] > 0, "dirty")
        assert told.dirty["all"] == 1


def test_it_leaves_nothing_behind_and_starts_again(best: Path, tmp_path: Path) -> None:
    descriptors = descriptors_in_use()
    threads = threading.active_count()
    running = Watching(tmp_path / "canary")
    running.trigger.set_watched([Watched("one", best), Watched("polled", best, poll_s=0.01)])
    for round_number in range(1, 4):
        running.trigger.start()
        running.trigger.start()
        running.dirtied_by(
            partial((best / "config.cfg").write_bytes, b"%d" % round_number), at_least={"one", "polled"}
        )
        running.trigger.stop()
        running.trigger.stop()
        assert threading.active_count() == threads
        assert descriptors_in_use() == descriptors
        running.dirty.clear()
        (best / "config.cfg").write_bytes(b"unseen")
        running.trigger.check()
        running.trigger.touch_canary()
        assert not running.dirty


def test_its_descriptors_are_not_for_children(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        assert told.trigger._directories is not None
        assert not os.get_inheritable(told.trigger._directories.descriptor)


@pytest.mark.parametrize("limit", ["MAXIMUM_DIRECTORIES", "MAXIMUM_DEPTH"])
def test_what_is_no_checkpoint_is_not_watched_for_ever(
    tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, limit, 12)
    path = tmp_path / "home"
    deep = path / Path(*("d" for _ in range(14)))
    deep.mkdir(parents=True)
    with watching(tmp_path, Watched("home", path)) as told:
        degraded = told.told("watch.degraded")[0]
        assert degraded.key == "home"
        assert "more than 12" in degraded.fields["reason"]
        assert "source" in degraded.fields["hint"]
        assert told.watches <= 14 + len(path.parts)


@pytest.mark.parametrize("poll_s", [0.0, 0.01], ids=["events", "polling"])
def test_a_folder_of_thousands_of_runs_is_seen_whole(tmp_path: Path, poll_s: float) -> None:
    runs = tmp_path / "runs"
    for number in range(footprint.MAXIMUM_DIRECTORIES + 100):
        (runs / str(number)).mkdir(parents=True)
    glob = Watched("all", runs, pattern=f"{runs}/*/model-best", poll_s=poll_s, contents=False)
    with watching(tmp_path, glob) as told:
        assert not told.told("watch.degraded")
        with os.scandir(runs) as entries:
            last = [entry.name for entry in entries][-1]  # in the order in which they are looked at
        wait_for(lambda: bool(poll_s) <= told.dirty["all"], "the first poll")
        told.dirtied_by((runs / last / "model-best").mkdir, at_least={"all"})


def test_an_idle_trigger_for_a_hundred_rules_has_one_instance_and_two_threads(tmp_path: Path) -> None:
    paths = [tmp_path / f"root{number}" / "out" / "model-best" for number in range(100)]
    for path in paths:
        write_checkpoint(path)
    before = threading.active_count()
    with watching(tmp_path, *(Watched(str(n), path) for n, path in enumerate(paths))) as told:
        assert sum("inotify" in leads_to for _fd, leads_to in descriptors_in_use()) == 1
        assert threading.active_count() == before + 2
        told.dirtied_by(partial((paths[99] / "vocab/lookups.bin").write_bytes, b"2"), at_least={"99"})
        assert set(told.dirty) == {"99"}


def test_stop_during_a_callback_does_not_hang(best: Path, tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()
    with watching(tmp_path, Watched("one", best)) as told:

        def block(_key: str) -> None:
            entered.set()
            release.wait(120)

        told.before_dirty = block
        (best / "config.cfg").write_bytes(b"2")
        assert entered.wait(120)
        stopper = threading.Thread(target=told.trigger.stop)
        stopper.start()
        release.set()
        stopper.join(120)
        assert not stopper.is_alive()


def test_it_needs_no_canary_to_start(tmp_path: Path) -> None:
    trigger = FilesystemTrigger(
        on_dirty=lambda _key: None, on_event=lambda _event: None, canary_path=tmp_path / "absent" / "canary"
    )
    trigger.start()
    trigger.touch_canary()  # says so in the log; the age goes on growing
    trigger.stop()
    assert trigger.canary_age_s() >= 0
