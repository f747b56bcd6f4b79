"""Whether the files of a release are, on the disk, still those of its manifest."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.manifest import (
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    MODEL_NAME,
    BadManifest,
    FileDigest,
)
from spancat_daemon.verify.disk import Disk, open_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spancat_daemon.release.folder import Release
    from spancat_daemon.release.manifest import Manifest

Kind = Literal["missing", "extra", "altered", "unreadable", "model"]

Sums = dict[tuple[int, ...], "FileDigest | OSError"]
"""What reading each inode came to; releases share most of theirs."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST: Final = 64  # no checkpoint comes near; each level holds a descriptor
# What a disk, or a file system with checksums, says of bytes that it has lost.
_LOST: Final = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA, errno.EREMOTEIO})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as the manifest says.

    Attributes:
        path: the file, relative to the release; empty if it is about the release itself.
        kind: ``missing``; ``extra``; ``altered``: its bytes are others, or the disk has lost them (an
            input/output error); ``unreadable``: nothing is known of its bytes (no permission, too many open
            files), which is no sign of damage; or ``model``: ``model.bin`` is not the component's model.
        reason: one sentence about it.
    """

    path: str
    kind: Kind
    reason: str

    @property
    def damage(self) -> bool:
        """Whether the release is known not to be what it was; else only unknown to be."""
        return self.kind != "unreadable"

    def __str__(self) -> str:
        """Names the file, and says what is the matter."""
        return f"{self.path}: {self.reason}" if self.path else self.reason


def digests(
    release_path: Path,
    manifest: Manifest,
    *,
    pace: Callable[[int], None] = lambda _: None,
    sums: Sums | None = None,
) -> list[Finding]:
    """Read every file of a release from the disk and compare; an empty list means that nothing has changed.

    Reads each inode once, in pieces, past the page cache, and follows no links. Never raises for what it
    finds.

    Args:
        release_path: the release's directory; a link to it is followed.
        manifest: what it must be.
        pace: is told of the bytes of each piece that was read. It may take its time, or raise
            (no OSError) to give up.
        sums: what is known already, and will be: pass the same to have inodes that several releases share
            read once. Those that changed since are read anew.

    Returns:
        What is not as it should be, sorted by path.
    """
    try:
        root = os.open(release_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        kind: Kind = "missing" if isinstance(error, FileNotFoundError) else _kind_of(error)
        return [Finding("", kind, f"the release can't be opened: {error.strerror}")]
    try:
        return digests_at(root, manifest, pace=pace, sums=sums)
    finally:
        os.close(root)


def digests_at(
    directory_fd: int,
    manifest: Manifest,
    *,
    pace: Callable[[int], None] = lambda _: None,
    sums: Sums | None = None,
) -> list[Finding]:
    """Do `digests` for an open directory: of this very release, wherever it is moved meanwhile."""
    findings = _Check(manifest, Disk(), pace, {} if sums is None else sums).run(directory_fd)
    return sorted(findings + _model(manifest), key=lambda finding: (finding.path, finding.kind))


def faults_of(release: Release, *, pace: Callable[[int], None] = lambda _: None) -> list[Finding]:
    """`digests` of a release that is to be relied on, at full speed; empty if it is whole."""
    return digests(release.path, release.manifest, pace=pace)


class _Check:
    """One walk over a release."""

    def __init__(self, manifest: Manifest, disk: Disk, pace: Callable[[int], None], sums: Sums) -> None:
        self._manifest = manifest
        self._expected = manifest.files
        self._disk = disk
        self._pace = pace
        self._sums = sums
        self._findings: list[Finding] = []
        self._seen: set[str] = set()
        self._unlisted: list[str] = []

    def run(self, root: int) -> list[Finding]:
        self._own_manifest(root)
        self._folder(root, "", 0)
        for path in self._expected:
            if path not in self._seen and not path.startswith(tuple(self._unlisted)):
                self._find(path, "missing", "is in the manifest, not in the release")
        return self._findings

    def _find(self, path: str, kind: Kind, reason: str) -> None:
        self._findings.append(Finding(path, kind, reason))

    def _folder(self, directory: int, prefix: str, depth: int) -> None:
        try:
            names = sorted(os.listdir(directory))
        except OSError as error:
            self._can_not_list(prefix, error)
            return
        for name in names:
            path = prefix + name
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue  # it went meanwhile
            except OSError as error:
                self._seen.add(path)
                self._find(path, _kind_of(error), f"can't be looked at: {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                self._enter(name, directory, f"{path}/", depth + 1)
            elif path != MANIFEST_NAME:
                self._seen.add(path)
                self._file(path, name, directory, status)

    def _enter(self, name: str, directory: int, prefix: str, depth: int) -> None:
        if depth > _DEEPEST:
            self._find(prefix.rstrip("/"), "extra", "lies too deep to belong to a release")
            return
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=directory)
        except OSError as error:
            self._can_not_list(prefix, error)
            return
        try:
            self._folder(fd, prefix, depth)
        finally:
            os.close(fd)

    def _can_not_list(self, prefix: str, error: OSError) -> None:
        self._unlisted.append(prefix)  # what should lie there is not known to be missing
        self._find(prefix.rstrip("/"), _kind_of(error), f"can't be listed: {error.strerror}")

    def _file(self, path: str, name: str, directory: int, status: os.stat_result) -> None:
        expected = self._expected.get(path)
        if expected is None:
            self._find(path, "extra", "is in the release, not in the manifest")
            return
        if not stat.S_ISREG(status.st_mode):
            self._find(path, "altered", "is not a regular file any more")
            return
        try:
            found = self._sum(name, directory)
        except OSError as error:
            self._find(path, _kind_of(error), f"can't be read: {error.strerror}")
            return
        if found.bytes != expected.bytes:
            self._find(path, "altered", f"has {found.bytes:,} bytes, the manifest says {expected.bytes:,}")
        elif found.sha256 != expected.sha256:
            reason = f"its SHA-256 is {found.sha256[:12]}…, the manifest says {expected.sha256[:12]}…"
            self._find(path, "altered", reason)

    def _sum(self, name: str, directory: int) -> FileDigest:
        fd = open_file(name, directory)
        try:
            inode = _identity(os.fstat(fd))
            if inode not in self._sums:
                self._sums[inode] = self._read(fd)
        finally:
            os.close(fd)
        found = self._sums[inode]
        if isinstance(found, OSError):
            raise found
        return found

    def _read(self, fd: int) -> FileDigest | OSError:
        digest, size = hashlib.sha256(), 0
        self._pace(0)  # a release of many empty files can be given up too
        try:
            for piece in self._disk.pieces(fd):
                digest.update(piece)
                size += len(piece)
                self._pace(len(piece))
        except OSError as error:
            return error
        return FileDigest(digest.hexdigest(), size)

    def _own_manifest(self, root: int) -> None:
        """Compare what release.json says on the disk with what it said when it was read."""
        try:
            fd = open_file(MANIFEST_NAME, root)
        except OSError as error:
            kind: Kind = "missing" if isinstance(error, FileNotFoundError) else _kind_of(error)
            self._find(MANIFEST_NAME, kind, f"can't be opened: {error.strerror}")
            return
        raw = bytearray()
        try:
            for piece in self._disk.pieces(fd):
                raw += piece
                self._pace(len(piece))
                if len(raw) > MANIFEST_LIMIT_BYTES:
                    break
            if manifests.parse(bytes(raw), where=MANIFEST_NAME) != self._manifest:
                self._find(MANIFEST_NAME, "altered", "does not say what it did")
        except BadManifest as error:
            self._find(MANIFEST_NAME, "altered", error.reason)
        except OSError as error:
            self._find(MANIFEST_NAME, _kind_of(error), f"can't be read: {error.strerror}")
        finally:
            os.close(fd)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    # With its times: the number of a file that was pruned meanwhile passes on to another.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _kind_of(error: OSError) -> Literal["altered", "unreadable"]:
    return "altered" if error.errno in _LOST else "unreadable"


def _model(manifest: Manifest) -> list[Finding]:
    """Compare what the manifest itself says about the model's two names."""
    copies: dict[str, FileDigest | None] = {
        name: manifest.files.get(name) for name in (MODEL_NAME, f"{manifest.component}/model")
    }
    return [
        Finding(name, "model", f"is not the model of {manifest.component!r} that the manifest names")
        for name, entry in copies.items()
        if entry is None or entry.sha256 != manifest.model_sha256
    ]
