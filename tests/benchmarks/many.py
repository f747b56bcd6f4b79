"""A deployment folder with thousands of releases, made in seconds: their manifests and history are true."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.durability import Durability
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.history import History
from spancat_daemon.release.manifest import MANIFEST_NAME, FileDigest
from tests.integration.release.fakes import manifest_of

if TYPE_CHECKING:
    from pathlib import Path

SHARED: Final = 16
"""Files of each release that are links of the first one's, as those of a pipeline that is trained on are."""


class Fleeting(Durability):
    """Makes nothing stay: a folder of a test need not outlast a power cut."""

    def sync_file(self, fd: int) -> None: ...

    def sync_data(self, fd: int) -> None: ...

    def sync_directory(self, fd: int) -> None: ...


def releases(path: Path, count: int) -> DeploymentFolder:
    """Make a folder whose history says that so many releases were published, one every ten minutes."""
    folder = DeploymentFolder(path)
    folder.prepare(Fleeting())
    began = datetime.now(UTC) - timedelta(minutes=10 * (count + 1))
    shared = {f"vocab/part-{number}": b"%d" % number * 1000 for number in range(SHARED)}
    digests = {name: _digest(data) for name, data in shared.items()}
    first: Path | None = None
    previous: str | None = None
    with History.open(folder.history_path, clock=lambda: datetime.now(UTC), durability=Fleeting()) as history:
        for sequence in range(1, count + 1):
            model = b"weights %d" % sequence
            manifest = manifest_of(
                sequence,
                {**digests, "spancat/model": _digest(model), "model.bin": _digest(model)},
                created=began + timedelta(minutes=10 * sequence),
                metrics={"spans_sc_f": -sequence % 997 / 1000, "spans_sc_p": 0.5, "speed": 12000.0},
                previous=previous,
            )
            at = folder.releases_path / manifest.id
            (at / "spancat").mkdir(parents=True)
            (at / "vocab").mkdir()
            for name, data in shared.items():
                if first is None:
                    _write(at / name, data)
                else:
                    os.link(first / name, at / name)
            _write(at / "spancat/model", model)
            os.link(at / "spancat/model", at / "model.bin")
            _write(at / MANIFEST_NAME, manifests.dump(manifest))
            said = {
                "release": manifest.id,
                "previous_release": previous,
                "content_sha256": manifest.content_sha256,
                "trigger": "change",
            }
            history.append("intent", said)
            history.append("commit", said)
            first, previous = first or at, manifest.id
        folder.mark_announced(history.committed)
    if previous is not None:
        folder.current.symlink_to(f"releases/{previous}")
    return folder


def _digest(data: bytes) -> FileDigest:
    return FileDigest(hashlib.sha256(data).hexdigest(), len(data))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o444)
