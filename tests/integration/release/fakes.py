"""Tiny releases with a true manifest, made without a checkpoint, and a judge of deployment folders.

Imported by subprocesses that are killed hundreds of times: nothing heavy here.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.history import History
from spancat_daemon.release.manifest import MANIFEST_NAME, FileDigest, Manifest, content_digest, release_id
from spancat_daemon.release.staging import Staged
from spancat_daemon.release.swap import Kind, Swapped, publish
from tests.faults import judge as faults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.records import Record

VOCABULARY = b"the same words in every release " * 100


def now() -> datetime:
    return datetime.now(UTC)


def manifest_of(
    sequence: int,
    files: Mapping[str, FileDigest],
    *,
    created: datetime | None = None,
    metrics: Mapping[str, Any] | None = None,
    previous: str | None = None,
) -> Manifest:
    created = created or now()
    content = content_digest(files)
    return Manifest(
        id=release_id(sequence, created, content),
        sequence=sequence,
        rule="products",
        created_at=f"{created.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z",
        trigger="change",
        forced=False,
        changed=True,
        source="runs/products/model-best",
        contents="pipeline",
        component="spancat",
        factory="spancat",
        labels=("A", "B"),
        spans_key="sc",
        threshold=0.5,
        lang="en",
        pipeline=("tok2vec", "spancat"),
        spacy_version=">=3.8.7,<3.9.0",
        verifier=None,
        metrics=metrics or {},
        metrics_may_be_stale=False,
        files=files,
        model_sha256=files["model.bin"].sha256 if "model.bin" in files else "0" * 64,
        content_sha256=content,
        previous=previous,
        verification={},
    )


def stage(folder: DeploymentFolder, sequence: int, model: bytes) -> tuple[Staged, Manifest]:
    """Stage a release as the real stage leaves it: sealed, an unchanged file shared with the live one."""
    live = folder.live()
    path = folder.staging_path / f"{sequence:06d}.{os.getpid()}.{os.urandom(4).hex()}"
    (path / "spancat").mkdir(parents=True)
    (path / "vocab").mkdir()
    contents = {
        "config.cfg": b"[nlp]\n# %d\n" % sequence,
        "spancat/model": model,
        "vocab/strings.json": VOCABULARY,
    }
    if live is not None:
        (path / "vocab/strings.json").hardlink_to(live.path / "vocab/strings.json")
    files: dict[str, FileDigest] = {}
    for name, data in contents.items():
        if not (path / name).exists():
            (path / name).write_bytes(data)
            (path / name).chmod(0o444)
        files[name] = FileDigest(hashlib.sha256(data).hexdigest(), len(data))
    (path / "model.bin").hardlink_to(path / "spancat/model")
    files["model.bin"] = files["spancat/model"]
    manifest = manifest_of(sequence, files, previous=live.id if live else None)
    (path / MANIFEST_NAME).write_bytes(manifests.dump(manifest))
    (path / MANIFEST_NAME).chmod(0o444)
    staged = Staged(
        path=path,
        files=files,
        model_sha256=manifest.model_sha256,
        content_sha256=manifest.content_sha256,
        bytes=sum(file.bytes for file in files.values()),
        bytes_written=0,
        linked=(),
        plan=cast("Any", None),
    )
    return staged, manifest


def publish_next(
    folder: DeploymentFolder,
    history: History,
    *,
    kind: Kind = "symlink",
    model: bytes | None = None,
    durability: Durability | None = None,
) -> Swapped:
    sequence = folder.next_sequence(history=history)
    staged, manifest = stage(folder, sequence, model or os.urandom(2000))
    settings: dict[str, Any] = {} if durability is None else {"durability": durability}
    return publish(
        folder,
        staged,
        manifest,
        kind=kind,
        history=history,
        details={"rule": "products", "source": manifest.source},
        monotonic=time.monotonic,
        **settings,
    )


@dataclass
class Bench:
    """A prepared folder with its history open."""

    folder: DeploymentFolder
    history: History

    @classmethod
    def at(cls, path: Path) -> Bench:
        folder = DeploymentFolder(path)
        folder.prepare()
        return cls(folder, History.open(folder.history_path, clock=now))

    def reopen(self) -> None:
        self.history.close()
        self.history = History.open(self.folder.history_path, clock=now)

    def publish(self, **settings: Any) -> Swapped:
        return publish_next(self.folder, self.history, **settings)

    def kinds(self) -> list[str]:
        return [record.kind for record in self.history.records()]


def whole(directory_fd: int) -> Manifest:
    """Check a release that was resolved once: all is read relative to one descriptor."""
    resolved = Path(f"/proc/self/fd/{directory_fd}")
    assert faults.whole(resolved) == []
    return manifests.read(resolved / MANIFEST_NAME)


def judge(folder: DeploymentFolder) -> list[Record]:
    """Assert that a recovered folder is as it may be, also to the project's own eyes; return its commits."""
    assert faults.judge(folder.path) == []
    history = History.reading(folder.history_path)
    assert history.verify() == []
    assert history.pending_intent() is None
    survey = folder.survey()
    assert (survey.misnamed, survey.stray_links, survey.broken) == ((), (), ())
    live = folder.live()
    assert history.live == (live.id if live else None)
    assert history.released() == {release.id for release in survey.releases}
    return [record for record in history.records() if record.kind in {"commit", "recovered"}]
