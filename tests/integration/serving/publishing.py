"""Real pipelines published by the real swap, without a daemon; the judge is what they predict.

Imported by subprocesses too: spaCy is imported where it is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spancat_daemon.config.model import Keep
from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.history import History
from spancat_daemon.release.manifest import MANIFEST_NAME, FileDigest
from spancat_daemon.release.pruning import prune
from spancat_daemon.release.staging import Staged
from spancat_daemon.release.swap import make_live, publish
from spancat_daemon.release.verdicts import verdicts_on
from tests.integration.release.fakes import manifest_of, now, publish_next

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.release.manifest import Manifest
    from spancat_daemon.release.survey import Release
    from spancat_daemon.release.swap import Kind


class Publisher:
    """A deployment folder that this process publishes into."""

    def __init__(self, path: Path, kind: Kind = "symlink") -> None:
        self.folder = DeploymentFolder(path)
        self.folder.prepare()
        self.kind = kind
        self._history = History.open(self.folder.history_path, clock=now)

    @property
    def path(self) -> Path:
        return self.folder.path

    def publish(self, checkpoint: Path, *, component: str = "spancat", **claims: Any) -> Release:
        """Publish a pipeline; `claims` are what its manifest says otherwise than the truth."""
        sequence = self.folder.next_sequence(history=self._history)
        staged, manifest = _stage(self.folder, sequence, checkpoint, component, claims)
        return publish(
            self.folder,
            staged,
            manifest,
            kind=self.kind,
            history=self._history,
            details={"rule": "products", "source": str(checkpoint)},
            monotonic=time.monotonic,
        ).release

    def publish_fake(self) -> None:
        """Publish some bytes that are no pipeline."""
        publish_next(self.folder, self._history, kind=self.kind)

    def go_to(self, release: Release) -> None:
        """Make a release live that was before."""
        make_live(
            self.folder,
            release,
            kind=self.kind,
            history=self._history,
            details={"rule": "products"},
            monotonic=time.monotonic,
        )

    def close(self) -> None:
        """Let go of the folder, so that its file system can be unmounted."""
        self._history.close()

    def prune(self) -> list[str]:
        """Let go of all but the live release, the one before it, and those that are held."""
        verdicts = verdicts_on(self.folder, Keep(last=1), now(), history=self._history)
        return [release.id for release in prune(self.folder, verdicts, history=self._history)]


def _stage(
    folder: DeploymentFolder, sequence: int, checkpoint: Path, component: str, claims: dict[str, Any]
) -> tuple[Staged, Manifest]:
    path = folder.staging_path / f"{sequence:06d}.{os.getpid()}.{os.urandom(4).hex()}"
    shutil.copytree(checkpoint, path)
    (path / "model.bin").hardlink_to(path / component / "model")
    files: dict[str, FileDigest] = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            files[str(file.relative_to(path))] = FileDigest(hashlib.sha256(data).hexdigest(), len(data))
            file.chmod(0o444)
    settings = json.loads((path / component / "cfg").read_text())
    meta = json.loads((path / "meta.json").read_text())
    truth: dict[str, Any] = {
        "component": component,
        "labels": tuple(settings["labels"]),
        "spans_key": settings["spans_key"],
        "threshold": settings.get("threshold"),
        "pipeline": tuple(meta["pipeline"]),
        "spacy_version": meta["spacy_version"],
    }
    manifest = replace(manifest_of(sequence, files), **{**truth, **claims})
    (path / MANIFEST_NAME).write_bytes(manifests.dump(manifest))
    staged = Staged(
        path=path,
        files=files,
        model_sha256=manifest.model_sha256,
        content_sha256=manifest.content_sha256,
        bytes=manifest.content_bytes,
        bytes_written=manifest.content_bytes,
        linked=(),
        plan=None,  # type: ignore[arg-type]  # nothing that publishes looks at it
    )
    return staged, manifest


def spoil(file: Path, *, at: int = -100) -> None:
    """Change one byte of a file of a release, in place."""
    data = bytearray(file.read_bytes())
    data[at] ^= 0xFF
    overwrite(file, bytes(data))


def overwrite(file: Path, data: bytes) -> None:
    """Change the bytes of a file of a release, in place, under all its names."""
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.truncate(0)
        stream.write(data)
    file.chmod(0o444)
