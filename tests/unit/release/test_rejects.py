from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.errors import Moved, Rejected
from spancat_daemon.release import trash
from spancat_daemon.release.durability import Durability
from spancat_daemon.release.folder import DeploymentFolder, NoSuchRelease, unique_bytes
from spancat_daemon.release.history import History
from spancat_daemon.release.manifest import parse_release_id, read
from spancat_daemon.release.recovery import faults, recover
from spancat_daemon.release.rejects import find_rejected, forget, keep, let_go, refusal, rejected
from spancat_daemon.release.staging import discard, restage, seal
from spancat_daemon.release.survey import names_in
from spancat_daemon.release.swap import publish
from tests.integration.release.fakes import now
from tests.unit.release.staging_scene import (
    MODEL,
    Scene,
    contents_of,
    manifest_of,
    no_descriptors_lost,
    path_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spancat_daemon.release.manifest import Manifest
    from spancat_daemon.release.staging import Staged
    from spancat_daemon.release.survey import Release

REFUSED = {"level": "load", "passed": False, "reason": "predicts nothing", "terms_sha256": "t" * 64}


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    with no_descriptors_lost():
        yield


@dataclass
class Rejecting:
    """A checkpoint, and the deployment folder that refuses it."""

    scene: Scene
    folder: DeploymentFolder
    ids: list[str] = field(default_factory=list)

    def stage(self, model: bytes, **verdict: Any) -> tuple[Staged, Manifest]:
        self.scene.write(MODEL, model)
        staged = self.scene.stage(previous=self.folder.live())
        return staged, manifest_of(staged, self.folder.next_sequence(), verification=REFUSED | verdict)

    def reject(self, model: bytes, *, last: int = 3, **verdict: Any) -> str:
        staged, manifest = self.stage(model, **verdict)
        keep(self.folder, staged, manifest, last=last)
        assert self.scene.left() == []
        assert names_in(self.folder.trash_path) == []
        assert manifest.id not in self.ids, "an id was used twice"
        self.ids.append(manifest.id)
        return manifest.id

    def publish(self, staged: Staged, manifest: Manifest) -> Release:
        seal(staged, manifest)
        with History.open(self.folder.history_path, clock=now) as history:
            return publish(
                self.folder, staged, manifest, kind="symlink", history=history, details={}, monotonic=float
            ).release

    def publish_next(self, model: bytes) -> Release:
        return self.publish(*self.stage(model))

    def path_of(self, name: str) -> Path:
        return self.folder.rejected_path / name

    def left(self) -> list[str]:
        return [release.id for release in rejected(self.folder)]


@pytest.fixture
def rejecting(tmp_path: Path) -> Rejecting:
    folder = DeploymentFolder(tmp_path / "models")
    folder.prepare()
    scene = Scene.make(tmp_path / "run")
    scene.staging, scene.releases = folder.staging_path, folder.releases_path
    return Rejecting(scene, folder)


class Broken(Durability):
    """Fails at the call with this number, from 0, and says where the others were."""

    def __init__(self, at: int = -1) -> None:
        self.at = at
        self.calls: list[Path] = []

    def sync_file(self, fd: int) -> None:
        self._sync(fd)

    def sync_directory(self, fd: int) -> None:
        self._sync(fd)

    def _sync(self, fd: int) -> None:
        self.calls.append(path_of(fd))
        if len(self.calls) - 1 == self.at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class TestKeep:
    def test_is_what_its_release_would_have_been(self, rejecting: Rejecting) -> None:
        live = rejecting.publish_next(b"good")
        staged, manifest = rejecting.stage(b"bad")
        inodes = {path: (staged.path / path).stat().st_ino for path in staged.files}
        keep(rejecting.folder, staged, manifest, last=3)
        (kept,) = rejected(rejecting.folder)
        assert (kept.id, kept.sequence, kept.manifest, kept.live) == (manifest.id, 2, manifest, False)
        assert kept.path == rejecting.folder.rejected_path / manifest.id
        assert faults(kept) == []
        assert contents_of(kept.path).keys() == contents_of(live.path).keys()
        for theirs in (live.path, *live.path.rglob("*")):
            mine = kept.path / theirs.relative_to(live.path)
            assert mine.stat().st_mode == theirs.stat().st_mode, mine
        # nothing was copied: the very files that were staged, most of them the live release's own
        assert inodes == {path: (kept.path / path).stat().st_ino for path in staged.files}
        assert kept.path.joinpath("tokenizer").samefile(live.path / "tokenizer")
        assert unique_bytes(kept.path) == len(b"bad") + kept.path.joinpath("release.json").stat().st_size
        assert rejecting.folder.releases() == [live]

    def test_the_newest_stay_and_numbers_go_on(self, rejecting: Rejecting) -> None:
        ids = [rejecting.reject(b"%d" % number) for number in range(5)]
        assert rejecting.left() == ids[:1:-1]
        assert [parse_release_id(name) for name in ids] == [1, 2, 3, 4, 5]
        assert rejecting.publish_next(b"good").sequence == 6
        assert rejecting.reject(b"x", last=1) not in ids
        assert rejecting.left() == rejecting.ids[-1:]

    def test_files_that_are_shared_stay_when_one_goes(self, rejecting: Rejecting) -> None:
        first = rejecting.reject(b"1")
        rejecting.reject(b"2", last=1)
        assert first not in names_in(rejecting.folder.rejected_path)
        assert faults(rejected(rejecting.folder)[0]) == []

    def test_takes_the_place_of_the_same_content(self, rejecting: Rejecting) -> None:
        first, other = rejecting.reject(b"same"), rejecting.reject(b"other")
        again = rejecting.reject(b"same", terms_sha256="u" * 64)
        assert rejecting.left() == [again, other]
        assert first.partition("-")[2] == again.partition("-")[2]
        assert first != again

    @pytest.mark.parametrize("already", [0, 2])
    def test_none_may_be_kept_and_still_no_number_is_given_twice(
        self, rejecting: Rejecting, already: int
    ) -> None:
        for number in range(already):
            rejecting.reject(b"%d" % number)
        for number in range(already, already + 3):
            rejecting.reject(b"%d" % number, last=0)
            assert rejecting.left() == []
            assert len(names_in(rejecting.folder.rejected_path)) == 1
        assert rejecting.publish_next(b"good").sequence == already + 4
        assert rejecting.reject(b"kept", last=1) == rejecting.left()[0]

    def test_what_is_not_ours_is_left_alone_and_told_nowhere(self, rejecting: Rejecting) -> None:
        folder = rejecting.folder
        elsewhere = folder.path.parent / "elsewhere"
        elsewhere.mkdir()
        stranger = "000001-20261122T113045Z-aaaaaaaa"
        (folder.rejected_path / stranger).symlink_to(elsewhere)
        (folder.rejected_path / "notes").mkdir()
        (folder.rejected_path / "notes.txt").write_text("mine")
        (folder.rejected_path / "old.gone").write_text("mine")
        before = names_in(folder.rejected_path)
        rejecting.reject(b"1")
        rejecting.reject(b"2", last=0)
        assert set(names_in(folder.rejected_path)) - {f"{rejecting.ids[-1]}.gone"} == set(before)
        assert elsewhere.is_dir()
        with pytest.raises(NoSuchRelease, match="none is kept"):
            find_rejected(folder, stranger)

    def test_a_damaged_one_is_left_out_and_goes_when_its_time_comes(self, rejecting: Rejecting) -> None:
        damaged, whole = rejecting.reject(b"1"), rejecting.reject(b"2")
        path = rejecting.folder.rejected_path
        (path / damaged / "release.json").unlink()
        (path / damaged / "release.json").write_text("{")
        assert rejecting.left() == [whole]
        newer = [rejecting.reject(b"3"), rejecting.reject(b"4")]
        assert names_in(path) == [whole, *newer]

    def test_one_under_another_name_is_not_taken_for_it(self, rejecting: Rejecting) -> None:
        kept = rejecting.path_of(rejecting.reject(b"1"))
        kept.rename(kept.with_name("000009-20261122T113045Z-aaaaaaaa"))
        assert rejecting.left() == []


class TestFailures:
    def test_what_fails_before_it_is_kept_takes_nothing_of_the_others(self, rejecting: Rejecting) -> None:
        before = [rejecting.reject(b"1"), rejecting.reject(b"2")]
        staged, manifest = rejecting.stage(b"3")
        counting = Broken()
        keep(rejecting.folder, staged, manifest, last=2, durability=counting)
        into = counting.calls.index(rejecting.folder.staging_path)
        assert counting.calls[into : into + 2] == [staged.path.parent, rejecting.folder.rejected_path]
        # All of it is made to stay before the rename: the manifest, then each directory, itself the last.
        assert counting.calls[0] == staged.path / "release.json"
        assert counting.calls[into - 1] == staged.path
        before = rejecting.left()
        for at in range(into + 2):
            staged, manifest = rejecting.stage(b"more %d" % at)
            with pytest.raises(OSError, match="Input/output error"):
                keep(rejecting.folder, staged, manifest, last=2, durability=Broken(at))
            assert staged.path.exists() == (at < into)
            assert [name for name in rejecting.left() if name != manifest.id] == before
            discard(staged)
            forget(rejecting.folder, manifest.id)
            assert rejecting.scene.left() == []

    def test_a_full_disk_leaves_the_stage_to_be_discarded(
        self, rejecting: Rejecting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = [rejecting.reject(b"1")]
        staged, manifest = rejecting.stage(b"2")

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(OSError, match="No space left"):
                keep(rejecting.folder, staged, manifest, last=1)
        assert rejecting.left() == before
        discard(staged)
        assert rejecting.scene.left() == []

    def test_older_ones_that_can_not_go_are_tried_again_with_the_next(
        self, rejecting: Rejecting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck = [rejecting.reject(b"1"), rejecting.reject(b"2")]
        throw_away = trash.throw_away

        def refused(directory: Path, name: str, *rest: Any) -> str:
            if name == stuck[0]:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            return throw_away(directory, name, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(trash, "throw_away", refused)
            third = rejecting.reject(b"3", last=1)
            assert rejecting.left() == [third, stuck[0]]
            with pytest.raises(OSError, match="not permitted"):
                let_go(rejecting.folder, last=1)
        assert let_go(rejecting.folder, last=1) == [stuck[0]]
        assert rejecting.left() == [third]

    def test_making_room_forgets_no_number(self, rejecting: Rejecting) -> None:
        ids = [rejecting.reject(b"1"), rejecting.reject(b"2")]
        rejecting.reject(b"3", last=0)
        assert let_go(rejecting.folder, last=0) == []
        ids += [rejecting.reject(b"4")]
        assert let_go(rejecting.folder, last=0) == ids[-1:]
        assert rejecting.folder.next_sequence() == 5

    def test_killed_before_every_system_call(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "tests.unit.release.dying_keeper", tmp_path],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert all(result["points"] > 9 for result in results)
        assert len(results) == 4


class TestFind:
    def test_by_id_number_and_start(self, rejecting: Rejecting) -> None:
        rejecting.publish_next(b"good")
        first, second = rejecting.reject(b"1"), rejecting.reject(b"2")
        assert find_rejected(rejecting.folder, first).id == first
        assert find_rejected(rejecting.folder, "3").id == second
        assert find_rejected(rejecting.folder, second[:7]).id == second
        with pytest.raises(NoSuchRelease, match=f"fits several rejected snapshots: {second}, {first}"):
            find_rejected(rejecting.folder, "0000")
        with pytest.raises(NoSuchRelease, match=f"the newest are {second}, {first}"):
            find_rejected(rejecting.folder, "1")  # a release

    def test_what_the_same_terms_refused(self, rejecting: Rejecting) -> None:
        name = rejecting.reject(b"1")
        rejecting.reject(b"2", terms_sha256="u" * 64)
        content = find_rejected(rejecting.folder, name).manifest.content_sha256
        found = refusal(rejecting.folder, content, "t" * 64)
        assert found is not None
        assert found.id == name
        assert refusal(rejecting.folder, content, "u" * 64) is None
        assert refusal(rejecting.folder, "0" * 64, "t" * 64) is None

    def test_a_folder_that_is_not_there_holds_none(self, tmp_path: Path) -> None:
        assert rejected(DeploymentFolder(tmp_path / "nowhere")) == []


class TestForget:
    def test_is_gone_and_harmless_twice(self, rejecting: Rejecting) -> None:
        first, second = rejecting.reject(b"1"), rejecting.reject(b"2")
        for _ in range(2):
            forget(rejecting.folder, second)
        assert rejecting.left() == [first]
        assert rejecting.folder.next_sequence() == 3
        assert names_in(rejecting.folder.trash_path) == []

    def test_nothing_else_can_be_named(self, rejecting: Rejecting) -> None:
        (rejecting.folder.rejected_path / "notes").mkdir()
        for name in ("notes", "../pins", ""):
            forget(rejecting.folder, name)
        assert (rejecting.folder.rejected_path / "notes").is_dir()
        assert rejecting.folder.pins_path.is_dir()


class TestRestage:
    def test_links_everything_and_becomes_a_release(self, rejecting: Rejecting) -> None:
        live = rejecting.publish_next(b"good")
        kept = find_rejected(rejecting.folder, rejecting.reject(b"bad"))
        staged = restage(kept, staging_path=rejecting.folder.staging_path)
        assert staged.bytes_written == 0
        assert set(staged.linked) == set(kept.manifest.files) - {"model.bin"}
        for path in kept.manifest.files:
            assert (staged.path / path).samefile(kept.path / path), path
        assert not (staged.path / "release.json").exists()
        assert (staged.files, staged.content_sha256, staged.model_sha256, staged.bytes) == (
            kept.manifest.files,
            kept.manifest.content_sha256,
            kept.manifest.model_sha256,
            kept.manifest.content_bytes,
        )
        manifest = manifest_of(staged, rejecting.folder.next_sequence(), previous=live.id)
        release = rejecting.publish(staged, manifest)
        assert rejecting.folder.live() == release
        assert release.sequence == kept.sequence + 1
        assert read(kept.path / "release.json") == kept.manifest  # the rejected one is untouched
        forget(rejecting.folder, kept.id)
        assert rejecting.left() == []
        assert faults(release) == []
        for field_of_plan in ("component", "factory", "labels", "spans_key", "threshold", "pipeline"):
            assert getattr(staged.plan, field_of_plan) == getattr(kept.manifest, field_of_plan)

    def test_needs_no_rejected_one_once_it_is_staged(self, rejecting: Rejecting) -> None:
        kept = find_rejected(rejecting.folder, rejecting.reject(b"bad"))
        staged = restage(kept, staging_path=rejecting.folder.staging_path)
        forget(rejecting.folder, kept.id)
        assert faults(rejecting.publish(staged, manifest_of(staged, 9))) == []

    @pytest.mark.parametrize("path", [MODEL, "tokenizer", "vocab/key2row"])
    def test_a_file_that_rotted_is_found(self, rejecting: Rejecting, path: str) -> None:
        kept = find_rejected(rejecting.folder, rejecting.reject(b"bad"))
        rotten = bytearray((kept.path / path).read_bytes() or b"\0")
        rotten[-1] ^= 1
        (kept.path / path).chmod(0o644)
        (kept.path / path).write_bytes(rotten)
        (kept.path / path).chmod(0o444)
        with pytest.raises(Rejected, match="not what the manifest says any more") as caught:
            restage(kept, staging_path=rejecting.folder.staging_path)
        assert caught.value.where == f"{kept.path}/{path}"
        assert rejecting.scene.left() == []

    def test_a_file_that_is_missing_is_found(self, rejecting: Rejecting) -> None:
        kept = find_rejected(rejecting.folder, rejecting.reject(b"bad"))
        (kept.path / "vocab/key2row").unlink()
        with pytest.raises(Rejected, match="vocab/key2row: is missing"):
            restage(kept, staging_path=rejecting.folder.staging_path)
        (kept.path / "vocab/key2row").symlink_to("/etc/passwd")
        with pytest.raises(Rejected, match="vocab/key2row: is not a file any more"):
            restage(kept, staging_path=rejecting.folder.staging_path)
        (kept.path / "vocab/key2row").unlink()
        (kept.path / "vocab").rename(kept.path / "other")
        (kept.path / "other/key2row").touch()
        (kept.path / "vocab").symlink_to("other")
        with pytest.raises(Moved):
            restage(kept, staging_path=rejecting.folder.staging_path)
        assert rejecting.scene.left() == []

    def test_what_can_not_be_linked_is_copied(
        self, rejecting: Rejecting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = find_rejected(rejecting.folder, rejecting.reject(b"bad"))
        (kept.path / "tokenizer").chmod(0o644)  # somebody could write to it
        link = os.link

        def refused(path: str, target: str, **settings: Any) -> None:
            if path == "config.cfg":
                raise OSError(errno.EMLINK, os.strerror(errno.EMLINK), path)
            link(path, target, **settings)

        monkeypatch.setattr(os, "link", refused)
        staged = restage(kept, staging_path=rejecting.folder.staging_path)
        assert set(kept.manifest.files) - set(staged.linked) == {"config.cfg", "tokenizer", "model.bin"}
        assert staged.content_sha256 == kept.manifest.content_sha256
        assert stat.S_IMODE((staged.path / "tokenizer").stat().st_mode) == 0o444
        discard(staged)

    def test_of_a_release_that_has_no_such_model(self, rejecting: Rejecting) -> None:
        staged, manifest = rejecting.stage(b"1")
        keep(rejecting.folder, staged, manifest, last=1)
        kept = rejected(rejecting.folder)[0]
        other = manifest_of(staged, 1, component="ner")
        with pytest.raises(Rejected, match=r"has no ner/model that is its model\.bin"):
            restage(
                type(kept)(kept.id, 1, kept.path, other, live=False),
                staging_path=rejecting.folder.staging_path,
            )


def test_recovery_leaves_them_alone(rejecting: Rejecting) -> None:
    rejecting.publish_next(b"good")
    name = rejecting.reject(b"bad")
    before = contents_of(rejecting.path_of(name))
    with History.open(rejecting.folder.history_path, clock=now) as history:
        assert recover(rejecting.folder, history=history).actions == ()
    assert contents_of(rejecting.path_of(name)) == before
