"""A release against its manifest, file by file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.folder import Release
from spancat_daemon.release.manifest import FileDigest, Manifest, content_digest
from spancat_daemon.verify.digests import Finding, Sums, digests, digests_at, faults_of
from spancat_daemon.verify.disk import PIECE_BYTES, Disk, open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = {"config.cfg": b"[nlp]", "spancat/model": b"weights" * 100, "vocab/deep/er/x": b"", "model.bin": b""}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    (tmp_path / "model.bin").unlink()
    (tmp_path / "model.bin").hardlink_to(tmp_path / "spancat" / "model")
    return tmp_path


@pytest.fixture
def manifest(release: Path) -> Manifest:
    files = {
        path: FileDigest(sha256(release / path), (release / path).stat().st_size) for path in sorted(FILES)
    }
    content = content_digest(files)
    manifest = Manifest(
        id=f"000001-20260101T000000Z-{content[:8]}",
        sequence=1,
        rule="products",
        created_at="2026-01-01T00:00:00.000000Z",
        trigger="manual",
        forced=False,
        changed=True,
        source="/runs/model-best",
        contents="pipeline",
        component="spancat",
        factory="spancat",
        labels=("A",),
        spans_key="sc",
        threshold=0.5,
        lang="en",
        pipeline=("spancat",),
        spacy_version=">=3.8",
        verifier=None,
        metrics={},
        metrics_may_be_stale=False,
        files=files,
        model_sha256=sha256(release / "spancat/model"),
        content_sha256=content,
        previous=None,
        verification={},
    )
    (release / "release.json").write_bytes(manifests.dump(manifest))
    return manifest


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def found(release: Path, manifest: Manifest) -> list[tuple[str, str]]:
    return [(finding.path, finding.kind) for finding in digests(release, manifest)]


def test_untouched_release_has_no_findings(release: Path, manifest: Manifest) -> None:
    assert digests(release, manifest) == []


def test_one_changed_byte(release: Path, manifest: Manifest) -> None:
    (release / "config.cfg").write_bytes(b"[nlq]")

    (finding,) = digests(release, manifest)
    assert (finding.path, finding.kind) == ("config.cfg", "altered")
    assert finding.reason.startswith("its SHA-256 is ")


def test_other_length_is_said_in_bytes(release: Path, manifest: Manifest) -> None:
    (release / "config.cfg").write_bytes(b"[nlp]\n")

    assert digests(release, manifest) == [
        Finding("config.cfg", "altered", "has 6 bytes, the manifest says 5")
    ]


def test_both_names_of_the_model_are_told(release: Path, manifest: Manifest) -> None:
    (release / "spancat/model").write_bytes(b"Weights" * 100)

    assert found(release, manifest) == [("model.bin", "altered"), ("spancat/model", "altered")]


def test_missing_and_extra(release: Path, manifest: Manifest) -> None:
    (release / "vocab/deep/er/x").rename(release / "vocab/deep/x")
    (release / "vocab/release.json").write_text("only the one on top is the manifest")

    assert found(release, manifest) == [
        ("vocab/deep/er/x", "missing"),
        ("vocab/deep/x", "extra"),
        ("vocab/release.json", "extra"),
    ]


def test_links_are_not_followed(
    release: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (release / "config.cfg").rename(elsewhere / "config.cfg")
    (release / "config.cfg").symlink_to(elsewhere / "config.cfg")
    (release / "vocab").rename(elsewhere / "vocab")
    (release / "vocab").symlink_to(elsewhere / "vocab")

    assert found(release, manifest) == [
        ("config.cfg", "altered"),
        ("vocab", "extra"),
        ("vocab/deep/er/x", "missing"),
    ]


def test_fifo_does_not_hold_it_up(release: Path, manifest: Manifest) -> None:
    (release / "config.cfg").unlink()
    os.mkfifo(release / "config.cfg")

    assert found(release, manifest) == [("config.cfg", "altered")]


def test_model_bin_of_another_component(release: Path, manifest: Manifest) -> None:
    (release / "model.bin").unlink()
    (release / "model.bin").write_bytes(b"another")
    entry = FileDigest(sha256(release / "model.bin"), 7)
    values = {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}
    files = {**manifest.files, "model.bin": entry}
    other = Manifest(**values | {"files": files, "content_sha256": content_digest(files)})
    (release / "release.json").write_bytes(manifests.dump(other))

    assert found(release, other) == [("model.bin", "model")]


def test_release_that_is_gone(release: Path, manifest: Manifest) -> None:
    (finding,) = digests(release / "gone", manifest)[:1]
    assert (finding.path, finding.kind) == ("", "missing")


def test_release_reached_through_current(
    release: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    current = tmp_path_factory.mktemp("deploy") / "current"
    current.symlink_to(release)
    assert digests(current, manifest) == []
    (release / "config.cfg").unlink()
    assert found(current, manifest) == [("config.cfg", "missing")]


def flip(path: Path) -> None:
    """One bit in the middle, as it rots: no time of the file's changes."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_one_flipped_bit_is_damage_and_faults_of_finds_it(release: Path, manifest: Manifest) -> None:
    found = Release(manifest.id, manifest.sequence, release, manifest, live=False)
    assert faults_of(found) == []
    flip(release / "config.cfg")
    (finding,) = faults_of(found)
    assert (finding.path, finding.kind, finding.damage) == ("config.cfg", "altered", True)
    assert str(finding).startswith("config.cfg: its SHA-256 is ")


def test_the_manifest_on_the_disk_is_part_of_it(release: Path, manifest: Manifest) -> None:
    (release / "release.json").write_bytes(manifests.dump(replace(manifest, labels=("B",))))
    assert digests(release, manifest) == [Finding("release.json", "altered", "does not say what it did")]
    flip(release / "release.json")
    (release / "release.json").write_bytes(b"{" + (release / "release.json").read_bytes())
    assert found(release, manifest) == [("release.json", "altered")]
    (release / "release.json").unlink()
    assert found(release, manifest) == [("release.json", "missing")]


def test_what_can_not_be_opened_is_unknown_and_not_missing(release: Path, manifest: Manifest) -> None:
    root = os.open(release, os.O_RDONLY | os.O_DIRECTORY)
    free = os.dup(root)
    os.close(free)
    _, most = limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, most))  # enough for one at a time
        findings = digests_at(root, manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        os.close(root)
    assert findings == [
        Finding("spancat", "unreadable", "can't be listed: Too many open files"),
        Finding("vocab", "unreadable", "can't be listed: Too many open files"),
    ]
    assert not any(finding.damage for finding in findings)


def test_what_the_disk_has_lost_is_altered_and_tried_once(
    release: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = (release / "spancat/model").stat().st_ino
    tried: list[int] = []
    preadv = os.preadv

    def fail(fd: int, buffers: Any, place: int) -> int:
        if os.fstat(fd).st_ino == lost:
            tried.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, place)

    monkeypatch.setattr(os, "preadv", fail)
    reason = "can't be read: Input/output error"
    assert digests(release, manifest) == [
        Finding("model.bin", "altered", reason),
        Finding("spancat/model", "altered", reason),
    ]
    assert len(tried) == 1


def test_shared_inodes_are_read_once_and_anew_when_they_change(release: Path, manifest: Manifest) -> None:
    read: list[int] = []
    sums: Sums = {}
    assert digests(release, manifest, pace=read.append, sums=sums) == []
    assert sum(read) == sum(map(len, FILES.values())) + (release / "release.json").stat().st_size
    read.clear()
    assert digests(release, manifest, pace=read.append, sums=sums) == []
    assert sum(read) == (release / "release.json").stat().st_size
    flip(release / "config.cfg")
    assert [finding.path for finding in digests(release, manifest, sums=sums)] == ["config.cfg"]


def test_pace_can_give_up_in_the_middle_of_a_file(release: Path, manifest: Manifest) -> None:
    (release / "spancat/model").write_bytes(bytes(5 * PIECE_BYTES))
    read: list[int] = []

    class Enough(Exception):  # noqa: N818  # not an error
        pass

    def pace(count: int) -> None:
        read.append(count)
        if read.count(PIECE_BYTES) == 2:
            raise Enough

    with pytest.raises(Enough):
        digests(release, manifest, pace=pace)
    assert sum(read) < 3 * PIECE_BYTES
    (release / "spancat/model").write_bytes(FILES["spancat/model"])
    assert digests(release, manifest) == []


def test_a_tree_without_end_is_not_entered(release: Path, manifest: Manifest) -> None:
    deep = release / "/".join(["d"] * 100)
    deep.mkdir(parents=True)
    (finding,) = digests(release, manifest)
    assert (finding.kind, finding.path.count("d")) == ("extra", 65)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 77])
def test_pieces_are_the_whole_file(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    with opened(tmp_path / "file") as fd:
        assert b"".join(map(bytes, Disk().pieces(fd))) == data


def test_reading_is_done_by_the_disk_and_leaves_the_cache_alone(tmp_path: Path) -> None:
    size = 3 * PIECE_BYTES + 5
    for name in ("cached", "not cached"):
        (tmp_path / name).write_bytes(os.urandom(size))
    with opened(tmp_path / "cached") as fd:
        os.fsync(fd)
        if not direct(fd):
            pytest.skip("the file system for temporary files reads through the page cache only")
    assert (tmp_path / "cached").read_bytes()  # now it is
    with opened(tmp_path / "not cached") as fd:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    before = from_disk()
    for name in ("cached", "not cached"):
        with opened(tmp_path / name) as fd:
            assert sum(map(len, Disk().pieces(fd))) == size
    between = from_disk()
    assert between - before >= 2 * size
    (tmp_path / "cached").read_bytes()
    assert from_disk() == between, "it was dropped from the cache"
    (tmp_path / "not cached").read_bytes()
    assert from_disk() - between >= size, "it was put into the cache"


def test_without_direct_reading_the_pages_are_dropped_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(2 * PIECE_BYTES + 5)
    (tmp_path / "file").write_bytes(data)
    with opened(tmp_path / "file") as fd:
        os.fsync(fd)
        on_a_disk = direct(fd)
    preadv = os.preadv

    def refuse(fd: int, buffers: Any, place: int) -> int:
        if direct(fd):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return preadv(fd, buffers, place)

    monkeypatch.setattr(os, "preadv", refuse)
    before = from_disk()
    with opened(tmp_path / "file") as fd:
        assert b"".join(map(bytes, Disk().pieces(fd))) == data
    assert not on_a_disk or from_disk() - before >= len(data)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
def test_rot_below_the_page_cache_is_found(release: Path, manifest: Manifest, tmp_path: Path) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(bytes(16 << 20))
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    disk.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
    try:
        names = [*FILES, "release.json"]
        for name in names:
            (disk / "release" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(release / name, disk / "release" / name)
        os.sync()
        before = image.read_bytes()
        place = before.index(FILES["spancat/model"])
        assert before.count(FILES["spancat/model"]) == 2  # model.bin was copied as a file of its own
        with image.open("r+b") as file:
            file.seek(place + 3)
            file.write(bytes([before[place + 3] ^ 1]))
        assert (disk / "release/spancat/model").read_bytes() == FILES["spancat/model"]
        assert (disk / "release/model.bin").read_bytes() == FILES["spancat/model"]
        (finding,) = digests(disk / "release", manifest)
        assert (finding.kind, finding.path in {"spancat/model", "model.bin"}) == ("altered", True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    fd = open_file(path.name, directory)
    try:
        yield fd
    finally:
        os.close(fd)
        os.close(directory)


def direct(fd: int) -> bool:
    flags = next(
        line for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if line.startswith("flags")
    )
    return bool(int(flags.split()[1], 8) & os.O_DIRECT)


def from_disk() -> int:
    """Bytes that this process had fetched from storage."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes"):
            return int(line.split()[1])
    raise AssertionError("no read_bytes")
