"""Looking at a folder by names and by what is remembered: never other than a fresh look would tell."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.history import History
from spancat_daemon.release.manifest import MANIFEST_NAME
from spancat_daemon.release.recovery import recover
from spancat_daemon.release.survey import Memory, names_in
from spancat_daemon.release.swap import make_live
from tests.integration.release.fakes import Bench, judge, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from spancat_daemon.release.folder import Brief, Release, Survey
    from spancat_daemon.release.manifest import Manifest
    from spancat_daemon.release.swap import Kind

AN_HOUR_NS = 3_600_000_000_000


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench.at(tmp_path / "models")
    bench.folder.memory = Memory(lambda: time.time_ns() + AN_HOUR_NS)  # nothing was touched just now
    for _ in range(4):
        bench.publish()
    return bench


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the releases whose manifests are read, as they are."""
    names: list[str] = []
    really = manifests.read

    def reading(path: Path) -> Manifest:
        names.append(path.parent.name)
        return really(path)

    monkeypatch.setattr(manifests, "read", reading)
    return names


def facts(survey: Survey[Any]) -> tuple[Any, ...]:
    return (
        survey.current,
        [
            (one.id, one.sequence, one.path, one.live, one.created_at, one.content_sha256)
            for one in survey.releases
        ],
        survey.broken,
        survey.misnamed,
        survey.stray_links,
        survey.foreign,
    )


def agreed(folder: DeploymentFolder) -> Survey[Brief]:
    outline = folder.outline()
    assert facts(outline) == facts(folder.survey())
    return outline


def alter_in_place(release: Release) -> None:
    """As an editor that keeps the times, of the same size: only ctime tells."""
    path = release.path / MANIFEST_NAME
    path.chmod(0o644)
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"rule": "products"', b'"rule": 000000000 '))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


class TestMemory:
    def test_an_untouched_manifest_is_read_once(self, bench: Bench, read: list[str]) -> None:
        first = bench.folder.outline()
        assert len(read) == 4
        assert facts(bench.folder.outline()) == facts(first)
        assert len(read) == 4
        newest = bench.publish().release
        del read[:]
        assert bench.folder.outline().releases[0].id == newest.id
        assert read == [newest.id]

    def test_one_that_was_altered_is_read_again(self, bench: Bench) -> None:
        agreed(bench.folder)
        altered = bench.folder.survey().releases[2]
        alter_in_place(altered)
        assert [path for path, _ in agreed(bench.folder).broken] == [altered.path]

    def test_one_that_was_touched_just_now_is_not_remembered(self, bench: Bench, read: list[str]) -> None:
        bench.folder.memory = Memory()
        bench.folder.outline()
        bench.folder.outline()
        assert len(read) == 8

    @pytest.mark.parametrize("clock", [lambda: 0, lambda: -1])
    def test_nor_one_from_the_future(self, clock: Callable[[], int], bench: Bench, read: list[str]) -> None:
        bench.folder.memory = Memory(clock)
        bench.folder.outline()
        bench.folder.outline()
        assert len(read) == 8

    @pytest.mark.parametrize("kind", ["symlink", "exchange"])
    def test_it_goes_along_with_all_that_is_done(self, kind: Kind, bench: Bench) -> None:
        folder = bench.folder
        agreed(folder)
        bench.publish(kind=kind)
        bench.publish(kind=kind)
        agreed(folder)
        back = folder.find("3")
        make_live(folder, back, kind=kind, history=bench.history, details={}, monotonic=time.monotonic)
        assert agreed(folder).current.id == back.id
        shutil.copytree(folder.find("1").path, folder.releases_path / "000099-20261122T113045Z-aaaaaaaa")
        (folder.releases_path / "mine").mkdir()
        (folder.releases_path / "000098-20261122T113045Z-aaaaaaaa").symlink_to("releases/x")
        found = agreed(folder)
        assert found.broken
        assert found.foreign
        assert found.stray_links
        shutil.rmtree(folder.find("2").path)
        assert len(agreed(folder).releases) == 5


class TestNames:
    def test_ids_are_told_without_a_manifest(self, bench: Bench, read: list[str]) -> None:
        ids = bench.folder.ids()
        assert read == []
        assert ids == [release.id for release in bench.folder.releases()]
        assert DeploymentFolder(bench.folder.path / "none").ids() == []

    def test_the_live_one_of_an_exchange_is_one_of_them(self, bench: Bench) -> None:
        bench.publish(kind="exchange")
        assert bench.folder.ids() == [release.id for release in bench.folder.releases()]

    @pytest.mark.parametrize("name", ["000002", "2", "@1", "@3", "@0"])
    def test_finding_reads_no_more_than_what_it_is_about(
        self, name: str, bench: Bench, read: list[str]
    ) -> None:
        history = bench.history
        found = bench.folder.find(name, history=history)
        assert len(read) <= (3 if name == "@3" else 1)
        assert found in bench.folder.releases()

    def test_one_whose_manifest_is_another_s_is_not_found_by_its_name(self, bench: Bench) -> None:
        folder = bench.folder
        stolen, other = folder.find("1"), folder.find("2")
        shutil.rmtree(stolen.path)
        shutil.copytree(other.path, stolen.path)
        with pytest.raises(SpancatDaemonError, match="is a second copy of"):
            folder.find(stolen.id)
        assert folder.find(other.id) == other

    def test_only_some(self, bench: Bench, read: list[str]) -> None:
        newest = bench.folder.ids()[:2]
        assert [release.id for release in bench.folder.survey(only=newest).releases] == newest
        assert sorted(read) == sorted(newest)


def swaps(bench: Bench, back: Sequence[str]) -> None:
    for name in back:
        make_live(
            bench.folder,
            bench.folder.find(name),
            kind="symlink",
            history=bench.history,
            details={},
            monotonic=time.monotonic,
        )


class TestPrevious:
    """The end of the history tells it, where it can; else all of it does."""

    @pytest.mark.parametrize("back", [(), ("@1",), ("@1", "@1"), ("1",), ("@2", "4"), ("2", "3", "1")])
    @pytest.mark.parametrize("more", [0, 1, 2])
    @pytest.mark.parametrize("gone", [None, "000003", "000004"])
    def test_it_is_what_the_whole_history_says(
        self, back: Sequence[str], more: int, gone: str | None, bench: Bench
    ) -> None:
        folder = bench.folder
        swaps(bench, back)
        for _ in range(more):
            bench.publish()
        if gone is not None and folder.current_state().id != folder.find(gone).id:
            shutil.rmtree(folder.find(gone).path)
        assert folder.previous() == folder.previous(history=History.reading(folder.history_path))
        assert folder.previous() == next(iter(folder.before_live()), None)

    def test_the_rest_of_the_history_is_not_read(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(History, "records", lambda _self: pytest.fail("all of it is read"))
        previous = bench.folder.previous()
        assert previous is not None
        assert previous.sequence == 3


class TestInOrder:
    """Recovery of a folder that this process knows: names tell that nothing is to be done, or what is."""

    def test_then_no_manifest_is_read(self, bench: Bench, read: list[str]) -> None:
        def recovered() -> tuple[tuple[str, ...], list[str]]:
            del read[:]
            actions = recover(bench.folder, history=bench.history).actions
            return actions, list(read)

        actions, read_first = recovered()
        assert (actions, len(read_first)) == ((), 4)
        assert recovered() == ((), [])
        newest = bench.publish().release
        assert recovered() == ((), [newest.id])
        assert recovered() == ((), [])

    @pytest.mark.parametrize(
        "disorder",
        [
            lambda folder: (folder.path / ".current.99.abcd").symlink_to("releases/x"),
            lambda folder: (folder.releases_path / "000009-20261122T113045Z-aaaaaaaa").symlink_to(
                "releases/x"
            ),
            lambda folder: stage(folder, 9, b"half"),
            lambda folder: (folder.trash_path / "000001-x.1234").mkdir(),
            lambda folder: (folder.incoming_path / "1-0123456789abcdef").mkdir(),
            lambda folder: shutil.rmtree(folder.find("1").path),
            lambda folder: shutil.copytree(folder.find("1").path, folder.releases_path / "copy"),
            lambda folder: folder.current.unlink(),
            lambda folder: (
                folder.current.unlink(),
                folder.current.symlink_to(f"releases/{folder.find('2').id}"),
            ),
            lambda folder: folder.mark_announced(1000),
        ],
        ids=[
            "link",
            "stray",
            "staging",
            "trash",
            "incoming",
            "gone",
            "foreign",
            "absent",
            "by-hand",
            "cut-off",
        ],
    )
    def test_what_is_not_in_order_is_found(self, disorder: Callable[[Any], object], bench: Bench) -> None:
        assert recover(bench.folder, history=bench.history).actions == ()
        disorder(bench.folder)
        result = recover(bench.folder, history=bench.history)
        assert result.actions or result.foreign
        assert recover(bench.folder, history=bench.history).actions == ()
        assert names_in(bench.folder.staging_path) == []
        if not result.foreign:
            judge(bench.folder)

    def test_a_release_that_nobody_knew_is_found(self, bench: Bench) -> None:
        assert recover(bench.folder, history=bench.history).actions == ()
        staged, manifest = stage(bench.folder, 9, b"new")
        staged.path.rename(bench.folder.releases_path / manifest.id)
        (action,) = (
            one for one in recover(bench.folder, history=bench.history).actions if "discarded" in one
        )
        assert manifest.id in action

    def test_what_others_did_meanwhile_is_looked_at_in_full(self, bench: Bench, read: list[str]) -> None:
        assert recover(bench.folder, history=bench.history).actions == ()
        altered = bench.folder.find("1")
        alter_in_place(altered)
        bench.folder.memory.forget()  # as whoever takes the folder does
        assert [path for path, _ in recover(bench.folder, history=bench.history).broken] == [altered.path]
        assert altered.id in read
