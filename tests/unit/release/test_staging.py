from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.errors import Moved, Rejected, Vanished
from spancat_daemon.release.copying import PIECE_BYTES
from spancat_daemon.release.durability import Durability
from spancat_daemon.release.manifest import content_digest, read
from spancat_daemon.release.staging import Abandoned, Lacking, discard, seal
from spancat_daemon.release.syncing import AT_ONCE as SYNCS_AT_ONCE
from tests.unit.release.staging_scene import (
    FILES,
    MODEL,
    Scene,
    contents_of,
    manifest_of,
    no_descriptors_lost,
    path_of,
    sha256,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spancat_daemon.checkpoint.tree import SourceFile

BIG = "vocab/vectors"
MiB = 1 << 20
SHM = Path("/dev/shm")  # noqa: S108  # another file system is wanted, not a temporary file


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    threads = _passing_threads()
    with no_descriptors_lost():
        yield
    assert not _passing_threads() - threads


def _passing_threads() -> set[threading.Thread]:
    """All but those that are kept for the next staging."""
    return {one for one in threading.enumerate() if one.name not in {"digest", "sync"}}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.make(tmp_path)


class Recording(Durability):
    """Notes what is made to stay, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Path]] = []

    def sync_file(self, fd: int) -> None:
        self._note("file", fd)
        super().sync_file(fd)

    def sync_directory(self, fd: int) -> None:
        self._note("directory", fd)
        super().sync_directory(fd)

    def _note(self, kind: str, fd: int) -> None:
        self.calls.append((kind, path_of(fd)))

    def names(self, kind: str, root: Path) -> list[str]:
        return [str(path.relative_to(root)) for what, path in self.calls if what == kind]


class Failing(Recording):
    """Fails to sync one thing, as a broken disk does."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def _note(self, kind: str, fd: int) -> None:
        super()._note(kind, fd)
        if self.calls[-1][1].name == self._name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class Meddling:
    """A proof that does something the moment the first bytes of its file were read, and the last."""

    def __init__(self, *, first: Callable[[], Any] = int, last: Callable[[], Any] = int) -> None:
        self._first, self._last = first, last

    def __call__(self) -> Meddling:
        return self

    def feed(self, chunk: bytes) -> None:  # noqa: ARG002  # as every proof
        action, self._first = self._first, int
        action()

    def finish(self) -> None:
        self._last()


WhenOpened = Callable[[str, Callable[[], Any]], None]


@pytest.fixture
def when_opened(monkeypatch: pytest.MonkeyPatch) -> WhenOpened:
    """Have something done at the moment a file of the checkpoint was opened, and nothing of it read."""

    def register(path: str, action: Callable[[], Any]) -> None:
        open_file = Source.open_file

        def meddled(source: Source, file: SourceFile) -> int:
            fd = open_file(source, file)
            if file.path == path:
                action()
            return fd

        monkeypatch.setattr(Source, "open_file", meddled)

    return register


def refuse(reason: str = "is cut off") -> Callable[[], None]:
    def refusing() -> None:
        raise Rejected(reason, hint="save it again")

    return refusing


class TestCopy:
    def test_holds_the_bytes_and_digests_of_the_checkpoint(self, scene: Scene) -> None:
        staged = scene.stage()
        assert contents_of(staged.path) == {**FILES, "model.bin": FILES[MODEL]}
        assert {path: digest.sha256 for path, digest in staged.files.items()} == {
            path: sha256(data) for path, data in contents_of(staged.path).items()
        }
        assert all(
            digest.bytes == len(contents_of(staged.path)[path]) for path, digest in staged.files.items()
        )
        assert staged.model_sha256 == sha256(FILES[MODEL])
        assert staged.content_sha256 == content_digest(staged.files)
        assert list(staged.files) == sorted(staged.files)

    def test_counts_the_model_once(self, scene: Scene) -> None:
        staged = scene.stage()
        assert staged.bytes == staged.bytes_written == sum(map(len, FILES.values()))
        assert staged.linked == ()

    def test_model_bin_is_the_model_file_itself(self, scene: Scene) -> None:
        staged = scene.stage()
        assert (staged.path / "model.bin").samefile(staged.path / MODEL)

    @pytest.mark.parametrize("size", [2 * MiB + 1, PIECE_BYTES, 16 * MiB - 1, 16 * MiB + PIECE_BYTES + 3])
    def test_large_files(self, scene: Scene, size: int) -> None:
        data = os.urandom(size)
        scene.write(BIG, data)
        staged = scene.stage()
        assert (staged.path / BIG).read_bytes() == data
        assert staged.files[BIG].sha256 == sha256(data)

    def test_more_files_than_descriptors(self, scene: Scene) -> None:
        for number in range(300):
            scene.write(f"many/{number % 7}/{number}", str(number).encode())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 90, hard))
        try:
            staged = scene.stage()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (staged.path / "many" / "6" / "293").read_text() == "293"
        assert len(staged.files) == len(FILES) + 1 + 300

    def test_files_are_read_only_whatever_umask_and_source_say(self, scene: Scene) -> None:
        (scene.checkpoint / "tokenizer").chmod(0o4755)
        (scene.checkpoint / "meta.json").chmod(0o600)
        umask = os.umask(0o077)
        try:
            staged = scene.stage()
        finally:
            os.umask(umask)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in staged.path.rglob("*") if path.is_file()}
        assert modes == {0o444}

    def test_nobody_else_looks_into_it_before_it_is_sealed(self, scene: Scene) -> None:
        umask = os.umask(0o077)
        try:
            staged = scene.stage()
        finally:
            os.umask(umask)
        folders = [staged.path, *(path for path in staged.path.rglob("*") if path.is_dir())]
        assert stat.S_IMODE(staged.path.stat().st_mode) == 0o700
        seal(staged, manifest_of(staged, 1))
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o755}

    def test_written_files_replace_those_of_the_checkpoint(self, scene: Scene) -> None:
        staged = scene.stage(data={"config.cfg": b"[reduced]\n", "empty": b""})
        assert (staged.path / "config.cfg").read_bytes() == b"[reduced]\n"
        assert (staged.path / "empty").read_bytes() == b""
        assert staged.files["config.cfg"].sha256 == sha256(b"[reduced]\n")

    def test_two_at_once_do_not_meet(self, scene: Scene) -> None:
        assert scene.stage().path != scene.stage().path
        assert len(scene.left()) == 2

    @pytest.mark.skipif(not SHM.is_dir(), reason="no /dev/shm to have another file system in")
    def test_from_another_file_system(self, scene: Scene, tmp_path: Path) -> None:
        if SHM.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("the temporary directory is on /dev/shm itself")
        root = SHM / f"staging-{os.getpid()}"
        data = os.urandom(3 * MiB)
        try:
            other = Scene.make(root)
            other.write(BIG, data)
            other.staging, other.releases = scene.staging, scene.releases
            previous = other.publish(other.stage())
            other.staging = root / "deploy" / "staging"
            staged = other.stage(previous=previous)  # its previous release can't be linked to
            assert contents_of(staged.path) == {**FILES, BIG: data, "model.bin": FILES[MODEL]}
            assert staged.linked == ()
        finally:
            subprocess.run(["rm", "-rf", str(root)], check=True)


class TestLink:
    def test_unchanged_files_are_those_of_the_release_before(self, scene: Scene) -> None:
        vectors = os.urandom(2 * MiB)
        scene.write(BIG, vectors)
        previous = scene.publish(scene.stage())
        changed = os.urandom(len(FILES[MODEL]))
        scene.write(MODEL, changed)
        scene.write(BIG, vectors)  # written anew, as trainers do
        staged = scene.stage(previous=previous)
        assert contents_of(staged.path) == {**FILES, BIG: vectors, MODEL: changed, "model.bin": changed}
        assert set(staged.linked) == {*FILES, BIG} - {MODEL}
        assert all((staged.path / path).samefile(previous.path / path) for path in staged.linked)
        assert not (staged.path / MODEL).samefile(previous.path / MODEL)
        assert staged.bytes_written == len(changed)
        assert {path: digest.sha256 for path, digest in staged.files.items()} == {
            path: sha256(data) for path, data in contents_of(staged.path).items()
        }

    def test_everything_unchanged_writes_and_syncs_nothing(self, scene: Scene) -> None:
        previous = scene.publish(scene.stage(data={"config.cfg": b"[reduced]\n"}))
        recording = Recording()
        staged = scene.stage(previous=previous, durability=recording, data={"config.cfg": b"[reduced]\n"})
        assert staged.bytes_written == 0
        assert recording.calls == []
        assert staged.content_sha256 == previous.manifest.content_sha256
        assert (staged.path / "model.bin").samefile(previous.path / "model.bin")

    def test_changed_data_is_written(self, scene: Scene) -> None:
        previous = scene.publish(scene.stage(data={"config.cfg": b"[a]\n"}))
        staged = scene.stage(previous=previous, data={"config.cfg": b"[b]\n"})
        assert (staged.path / "config.cfg").read_bytes() == b"[b]\n"
        assert (previous.path / "config.cfg").read_bytes() == b"[a]\n"

    @pytest.mark.parametrize("place", [0, 300_000, 399_999])
    def test_one_byte_differs(self, scene: Scene, place: int) -> None:
        previous = scene.publish(scene.stage())
        data = bytearray(FILES[MODEL])
        data[place] ^= 1
        scene.write(MODEL, bytes(data))
        staged = scene.stage(previous=previous)
        assert MODEL not in staged.linked
        assert (staged.path / "model.bin").read_bytes() == data

    def test_a_release_that_was_tampered_with_is_not_linked_to(self, scene: Scene) -> None:
        previous = scene.publish(scene.stage())
        (previous.path / "tokenizer").chmod(0o644)  # somebody can write to it now
        with (previous.path / "meta.json").open("ab") as file:
            file.write(b" ")
        (previous.path / "spancat" / "cfg").unlink()
        (previous.path / "spancat" / "cfg").mkdir()
        (previous.path / "config.cfg").unlink()
        (previous.path / "config.cfg").symlink_to(scene.checkpoint / "config.cfg")
        (previous.path / "vocab" / "lookups.bin").unlink()
        os.mkfifo(previous.path / "vocab" / "lookups.bin")
        staged = scene.stage(previous=previous)
        assert set(staged.linked) == {MODEL, "tok2vec/model", "vocab/key2row"}
        assert contents_of(staged.path) == {**FILES, "model.bin": FILES[MODEL]}

    def test_the_release_before_is_gone(self, scene: Scene) -> None:
        previous = scene.publish(scene.stage())
        previous.path.rename(scene.releases / "gone")
        assert scene.stage(previous=previous).linked == ()

    def test_replaced_between_comparison_and_link(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        previous = scene.publish(scene.stage())
        link = os.link

        def replaced(src: str, dst: str, **options: Any) -> None:
            if src == "tokenizer":
                (previous.path / src).unlink()
                (previous.path / src).write_bytes(b"x" * len(FILES["tokenizer"]))
            link(src, dst, **options)

        monkeypatch.setattr(os, "link", replaced)
        staged = scene.stage(previous=previous)
        assert "tokenizer" not in staged.linked
        assert (staged.path / "tokenizer").read_bytes() == FILES["tokenizer"]

    @pytest.mark.parametrize("number", [errno.EMLINK, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP])
    def test_no_links_at_all(self, scene: Scene, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        previous = scene.publish(scene.stage())

        link = os.link
        old = 1
        for path in previous.path.rglob("*"):
            if path.is_file():
                os.utime(path, ns=(old, old))

        def refused(src: str, dst: str, **options: Any) -> None:
            # With too many links to the old file a new one still takes some; else none does.
            if number != errno.EMLINK or os.stat(src, dir_fd=options["src_dir_fd"]).st_mtime_ns == old:
                raise OSError(number, os.strerror(number))
            link(src, dst, **options)

        monkeypatch.setattr(os, "link", refused)
        staged = scene.stage(previous=previous)
        assert staged.linked == ()
        assert contents_of(staged.path) == {**FILES, "model.bin": FILES[MODEL]}

    def test_another_failure_of_link_is_one(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        previous = scene.publish(scene.stage())

        def refused(*_: Any, **__: Any) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "link", refused)
        with pytest.raises(OSError, match=r"Input/output error: '/.*/staging/") as caught:
            scene.stage(previous=previous)
        assert caught.value.errno == errno.EIO
        assert scene.left() == []

    def test_the_model_takes_the_last_link(self, scene: Scene, tmp_path: Path) -> None:
        """ext4 gives a file 65,000 names; a frozen model needs two in each release."""
        limit = os.pathconf(tmp_path, "PC_LINK_MAX")
        if limit > 65_000:
            pytest.skip(f"this file system has no limit of links in reach ({limit})")
        previous = scene.publish(scene.stage())
        names = tmp_path / "names"
        names.mkdir()
        for number in range(limit - (previous.path / MODEL).stat().st_nlink - 1):
            os.link(previous.path / MODEL, names / str(number))
        staged = scene.stage(previous=previous)
        assert (previous.path / MODEL).stat().st_nlink < limit + 1
        assert MODEL not in staged.linked
        assert (staged.path / "model.bin").samefile(staged.path / MODEL)
        assert not (staged.path / MODEL).samefile(previous.path / MODEL)
        assert (staged.path / MODEL).read_bytes() == FILES[MODEL]
        assert stat.S_IMODE((staged.path / MODEL).stat().st_mode) == 0o444
        assert staged.bytes_written == len(FILES[MODEL])

    def test_linked_files_are_proven_too(self, scene: Scene) -> None:
        """The proof of a model depends on the labels, which may have changed without it."""
        previous = scene.publish(scene.stage())
        with pytest.raises(Rejected, match=r"model-last/spancat/model: is cut off; save it again"):
            scene.stage(previous=previous, proofs={MODEL: Meddling(last=refuse())})
        assert scene.left() == []


class TestMoved:
    """The trainer writes while we read; each at an exact moment."""

    @pytest.mark.parametrize("path", [MODEL, "tok2vec/model", BIG])
    @pytest.mark.parametrize("linkable", [False, True])
    @pytest.mark.parametrize(
        "what", ["grows", "shrinks", "rewritten", "replaced", "removed", "touched", "joined"]
    )
    def test_never_staged(
        self, scene: Scene, when_opened: WhenOpened, path: str, what: str, linkable: bool
    ) -> None:
        if path == BIG:
            scene.write(BIG, os.urandom(16 * MiB + PIECE_BYTES))
        previous = scene.publish(scene.stage()) if linkable else None
        target = scene.checkpoint / path

        def meddle() -> None:
            if what == "grows":
                with target.open("ab") as file:
                    file.write(b"x")
            elif what == "shrinks":
                os.truncate(target, 10)
            elif what == "rewritten":
                target.write_bytes(os.urandom(target.stat().st_size))
            elif what == "replaced":
                target.with_suffix(".new").write_bytes(b"new")
                target.with_suffix(".new").replace(target)
            elif what == "removed":
                target.unlink()
            elif what == "touched":
                os.utime(target)
            else:
                scene.write("newcomer", b"")

        when_opened(path, meddle)
        with pytest.raises(Moved):
            scene.stage(previous=previous)
        assert scene.left() == []

    @pytest.mark.parametrize("path", [MODEL, "tok2vec/model", BIG])
    def test_or_as_it_was(self, scene: Scene, path: str) -> None:
        """Large files are proven while the rest goes on; by then they may be ours already."""
        files = {**FILES, BIG: os.urandom(3 * PIECE_BYTES)}
        scene.write(BIG, files[BIG])
        other = os.urandom(len(files[path]))
        try:
            staged = scene.stage(proofs={path: Meddling(first=lambda: scene.write(path, other))})
        except Moved:
            assert scene.left() == []
        else:
            assert contents_of(staged.path) == {**files, "model.bin": files[MODEL]}

    def test_truncated_between_two_pieces(self, scene: Scene) -> None:
        scene.write(BIG, os.urandom(3 * PIECE_BYTES))
        target = scene.checkpoint / BIG
        asked = 0

        def truncate() -> bool:
            nonlocal asked
            asked += 1
            if asked == 4:  # before the file; before its first, second, third piece
                os.truncate(target, PIECE_BYTES + 5)
            return False

        with pytest.raises(Moved, match=r"model-last/vocab/vectors: "):
            scene.stage(abandoned=truncate)
        assert asked >= 4
        assert scene.left() == []

    def test_before_it_is_opened(self, scene: Scene, when_opened: WhenOpened) -> None:
        when_opened("tok2vec/model", lambda: scene.write("config.cfg", b"[other]"))
        with pytest.raises(Moved, match=r"model-last/config.cfg: "):
            scene.stage()
        assert scene.left() == []

    def test_after_it_was_copied(self, scene: Scene, when_opened: WhenOpened) -> None:
        when_opened("config.cfg", lambda: scene.write("tok2vec/model", FILES["tok2vec/model"]))
        with pytest.raises(Moved, match=r"model-last/tok2vec/model: "):
            scene.stage()
        assert scene.left() == []

    def test_half_a_file_of_a_trainer_that_writes_is_no_fault(self, scene: Scene) -> None:
        def rewritten_then_refused() -> None:
            scene.write("config.cfg", b"[later]\n")
            refuse()()

        with pytest.raises(Moved):
            scene.stage(proofs={MODEL: Meddling(last=rewritten_then_refused)})
        assert scene.left() == []

    def test_checkpoint_removed(self, scene: Scene) -> None:
        def remove() -> None:
            subprocess.run(["rm", "-r", str(scene.checkpoint)], check=True)

        with pytest.raises((Moved, Vanished)):
            scene.stage(proofs={"tokenizer": Meddling(first=remove)})
        assert scene.left() == []


class TestRejected:
    @pytest.mark.parametrize("path", [MODEL, "tok2vec/model", BIG])
    @pytest.mark.parametrize("when", ["first", "last"])
    def test_names_file_reason_and_hint(self, scene: Scene, path: str, when: str) -> None:
        scene.write(BIG, os.urandom(16 * MiB + PIECE_BYTES))
        with pytest.raises(Rejected) as caught:
            scene.stage(proofs={path: Meddling(**{when: refuse()})})
        assert str(caught.value) == f"{scene.checkpoint}/{path}: is cut off; save it again"
        assert scene.left() == []

    @pytest.mark.parametrize("name", ["model.bin", "release.json"])
    def test_names_that_a_release_has_itself(self, scene: Scene, name: str) -> None:
        scene.write(name, b"")
        with pytest.raises(Rejected, match=name):
            scene.stage()
        assert scene.left() == []

    def test_a_source_that_fails_to_be_read(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        pread = os.pread

        def failing(fd: int, length: int, position: int) -> bytes:
            if path_of(fd) == scene.checkpoint / "tokenizer":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return pread(fd, length, position)

        monkeypatch.setattr(os, "pread", failing)
        with pytest.raises(Rejected, match=r"model-last/tokenizer: can't be read: Input/output error"):
            scene.stage()
        assert scene.left() == []


class TestSpace:
    def test_a_sparse_file_of_terabytes_is_refused_at_once(self, scene: Scene) -> None:
        scene.write(BIG, b"")
        os.truncate(scene.checkpoint / BIG, 8 << 40)
        recording = Recording()
        with pytest.raises(Lacking, match=r"have to be free") as caught:
            scene.stage(durability=recording)
        assert caught.value.needed > 8 << 40 > caught.value.free
        assert recording.calls == []
        assert scene.left() == []

    def test_what_has_to_stay_free(self, scene: Scene) -> None:
        with pytest.raises(Lacking) as caught:
            scene.stage(min_free_bytes=1 << 60)
        assert caught.value.needed == (1 << 60) + sum(map(len, FILES.values()))
        assert scene.left() == []

    def test_what_can_be_linked_needs_no_space(self, scene: Scene) -> None:
        previous = scene.publish(scene.stage())
        with pytest.raises(Lacking) as caught:
            scene.stage(previous=previous, min_free_bytes=1 << 60)
        assert caught.value.needed == 1 << 60

    def test_less_was_free_than_it_seemed(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """Someone else fills the disk meanwhile, or what looked linkable was not."""
        real = os.statvfs(scene.staging)
        answers = iter([real.f_bavail, 10])

        class Answer:
            f_frsize = real.f_frsize

            def __init__(self) -> None:
                self.f_bavail = next(answers)

        monkeypatch.setattr(os, "statvfs", lambda _: Answer())
        with pytest.raises(Lacking) as caught:
            scene.stage(min_free_bytes=1 << 20)
        assert caught.value.free == 10 * real.f_frsize
        assert scene.left() == []

    @pytest.mark.parametrize("limit", [100_000, 1_000_000, 10 * MiB])
    def test_file_size_limit(self, scene: Scene, limit: int) -> None:
        scene.write(BIG, os.urandom(16 * MiB))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                scene.stage()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert str(caught.value.filename).startswith(str(scene.staging))
        assert str(caught.value.filename).endswith(BIG)
        assert scene.left() == []


class TestDurability:
    def test_every_new_file_then_manifest_then_directories_bottom_up(self, scene: Scene) -> None:
        scene.write("vocab/deep/er/file", b"x")
        previous = scene.publish(scene.stage())
        scene.write(MODEL, b"changed")
        scene.write("vocab/deep/er/file", b"y")
        recording = Recording()
        staged = scene.stage(previous=previous, durability=recording)
        assert set(recording.names("file", staged.path)) == {MODEL, "vocab/deep/er/file"}
        before = len(recording.calls)
        seal(staged, manifest_of(staged, 2), recording)
        sealed = [(kind, str(path.relative_to(staged.path))) for kind, path in recording.calls[before:]]
        assert sealed[0] == ("file", "release.json")
        directories = [path for kind, path in sealed[1:] if kind == "directory"]
        assert set(directories) == {".", "spancat", "tok2vec", "vocab", "vocab/deep", "vocab/deep/er"}
        assert (
            directories.index("vocab/deep/er") < directories.index("vocab/deep") < directories.index("vocab")
        )
        assert directories[-1] == "."
        assert len(recording.calls) == len(set(recording.calls))  # each once

    @pytest.mark.parametrize("name", ["model", "tokenizer", "config.cfg"])
    def test_a_failed_fsync_of_a_file_ends_it(self, scene: Scene, name: str) -> None:
        failing = Failing(name)
        with pytest.raises(OSError, match="Input/output error") as caught:
            scene.stage(durability=failing)
        assert Path(caught.value.filename).name == name
        assert len(failing.calls) == len(set(failing.calls))  # never tried again
        assert name in {path.name for _, path in failing.calls}
        assert scene.left() == []

    @pytest.mark.parametrize("name", ["release.json", "vocab"])
    def test_a_failed_fsync_in_seal(self, scene: Scene, name: str) -> None:
        staged = scene.stage()
        failing = Failing(name)
        with pytest.raises(OSError, match="Input/output error") as caught:
            seal(staged, manifest_of(staged, 1), failing)
        assert str(caught.value.filename).startswith(str(staged.path))
        assert name in {path.name for _, path in failing.calls}
        assert ("directory", staged.path) not in failing.calls  # what comes after it is not made
        assert len(failing.calls) == len(set(failing.calls))  # never tried again
        discard(staged)
        assert scene.left() == []

    def test_seals_the_manifest_it_was_given(self, scene: Scene) -> None:
        staged = scene.stage()
        manifest = manifest_of(staged, 1)
        seal(staged, manifest)
        assert read(staged.path / "release.json") == manifest
        assert stat.S_IMODE((staged.path / "release.json").stat().st_mode) == 0o444

    def test_does_not_seal_another_ones_manifest(self, scene: Scene) -> None:
        staged = scene.stage()
        scene.write(MODEL, b"other")
        with pytest.raises(ValueError, match="another staged copy"):
            seal(scene.stage(), manifest_of(staged, 1))
        assert not (staged.path / "release.json").exists()

    def test_a_write_that_is_lost_is_found(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "pwrite", lambda _fd, data, _position: len(data))
        with pytest.raises(OSError, match="does not hold what was written") as caught:
            scene.stage()
        assert str(caught.value.filename).startswith(str(scene.staging))
        assert scene.left() == []


class TestGivenUp:
    @pytest.mark.parametrize("after", [0, 1, 5, 20])
    def test_leaves_nothing(self, scene: Scene, after: int) -> None:
        scene.write(BIG, os.urandom(16 * MiB + 2 * PIECE_BYTES))
        asked = 0

        def abandoned() -> bool:
            nonlocal asked
            asked += 1
            return asked > after

        with pytest.raises(Abandoned):
            scene.stage(abandoned=abandoned)
        # Who copies, digests and syncs asks each for itself, and no more than once after the answer.
        assert after < asked <= after + 1 + len(os.sched_getaffinity(0)) + SYNCS_AT_ONCE
        assert scene.left() == []

    def test_what_can_not_be_removed_is_said(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        unlink = os.unlink

        def refused(path: Any, **options: Any) -> None:
            if path == "tokenizer":
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            unlink(path, **options)

        monkeypatch.setattr(os, "unlink", refused)
        with pytest.raises(Rejected) as caught:
            scene.stage(proofs={"config.cfg": Meddling(last=refuse())})
        assert "could not be removed" in caught.value.__notes__[0]


class TestDiscard:
    def test_removes_everything(self, scene: Scene) -> None:
        staged = scene.stage()
        (staged.path / "vocab").chmod(0o000)
        (staged.path / "spancat").chmod(0o500)
        discard(staged)
        assert scene.left() == []
        discard(staged)  # and again

    def test_follows_no_link(self, scene: Scene) -> None:
        staged = scene.stage()
        (staged.path / "way").symlink_to(scene.checkpoint)
        (staged.path / "vocab" / "way").symlink_to(scene.checkpoint / "config.cfg")
        discard(staged)
        assert contents_of(scene.checkpoint) == FILES

    def test_leaves_what_became_a_release(self, scene: Scene) -> None:
        staged = scene.stage()
        release = scene.publish(staged)
        discard(staged)
        assert (release.path / MODEL).is_file()

    def test_leaves_the_files_that_are_shared(self, scene: Scene) -> None:
        previous = scene.publish(scene.stage())
        discard(scene.stage(previous=previous))
        assert contents_of(previous.path).keys() == {*FILES, "model.bin", "release.json"}
