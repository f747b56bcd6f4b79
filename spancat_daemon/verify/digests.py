"""Whether the files of a release are still those of its manifest."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from spancat_daemon.release.manifest import MANIFEST_NAME, MODEL_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.release.manifest import FileDigest, Manifest

_CHUNK_BYTES: Final = 1 << 20
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as the manifest says.

    Attributes:
        path: the file, relative to the release; empty if it is about the release itself.
        kind: ``missing``, ``extra``, ``altered``, ``unreadable`` (nothing is known of its bytes) or ``model``
            (``model.bin`` is not the component's model).
        reason: one sentence about it.
    """

    path: str
    kind: Literal["missing", "extra", "altered", "unreadable", "model"]
    reason: str


def digests(release_path: Path, manifest: Manifest) -> list[Finding]:
    """Hash every file of a release anew and compare; an empty list means that nothing has changed.

    Reads each inode once, in pieces, and follows no links. Never raises for what it finds.

    Returns:
        What is not as it should be, sorted by path.
    """
    try:
        root = os.open(release_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        kind: Literal["missing", "unreadable"] = (
            "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        )
        return [Finding("", kind, f"the release can't be opened: {error.strerror}")]
    try:
        findings = _Check(manifest).run(root)
    finally:
        os.close(root)
    findings += _model(manifest)
    return sorted(findings, key=lambda finding: (finding.path, finding.kind))


class _Check:
    """One walk over a release."""

    def __init__(self, manifest: Manifest) -> None:
        self._expected = manifest.files
        self._findings: list[Finding] = []
        self._sums: dict[tuple[int, int], tuple[str, int]] = {}  # model.bin is a second name of a file

    def run(self, root: int) -> list[Finding]:
        seen: set[str] = set()
        for folder, directories, names, fd in os.fwalk(".", dir_fd=root, onerror=self._unreadable):
            prefix = "" if folder == "." else os.path.relpath(folder, ".") + "/"
            for name in names + [name for name in directories if _is_link(name, fd)]:
                path = prefix + name
                if path == MANIFEST_NAME:
                    continue
                seen.add(path)
                self._file(path, name, fd)
        lost = [path for path in self._expected if path not in seen]
        self._findings += [
            Finding(path, "missing", "is in the manifest, not in the release") for path in lost
        ]
        return self._findings

    def _file(self, path: str, name: str, directory: int) -> None:
        expected = self._expected.get(path)
        if expected is None:
            self._findings.append(Finding(path, "extra", "is in the release, not in the manifest"))
            return
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                self._findings.append(Finding(path, "altered", "is not a regular file any more"))
                return
            found, size = self._hash(name, directory)
        except OSError as error:
            self._findings.append(Finding(path, "unreadable", f"can't be read: {error.strerror}"))
            return
        if size != expected.bytes:
            reason = f"has {size:,} bytes, the manifest says {expected.bytes:,}"
            self._findings.append(Finding(path, "altered", reason))
        elif found != expected.sha256:
            reason = f"its SHA-256 is {found[:12]}…, the manifest says {expected.sha256[:12]}…"
            self._findings.append(Finding(path, "altered", reason))

    def _hash(self, name: str, directory: int) -> tuple[str, int]:
        fd = os.open(name, _OPEN_FILE, dir_fd=directory)
        try:
            status = os.fstat(fd)
            inode = (status.st_dev, status.st_ino)
            if inode not in self._sums:
                digest, size = hashlib.sha256(), 0
                while chunk := os.read(fd, _CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
                self._sums[inode] = (digest.hexdigest(), size)
            return self._sums[inode]
        finally:
            os.close(fd)

    def _unreadable(self, error: OSError) -> None:
        path = os.path.relpath(os.fsdecode(error.filename or "."), ".")
        self._findings.append(Finding(path, "unreadable", f"can't be listed: {error.strerror}"))


def _is_link(name: str, directory: int) -> bool:
    # fwalk counts a link to a directory among the directories, and then doesn't enter it.
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False  # then fwalk can't enter it either, and says so


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
