"""A checkpoint and a deployment folder to stage it in, for the tests of staging."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spancat_daemon.checkpoint.contents import Plan, Planned
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.release.durability import DURABLE, Durability
from spancat_daemon.release.folder import Release
from spancat_daemon.release.manifest import Manifest, release_id
from spancat_daemon.release.staging import Staged, seal, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.checkpoint.wholeness import ProofFactory

MODEL = "spancat/model"
FILES: Mapping[str, bytes] = {
    "config.cfg": b"[nlp]\n",
    "meta.json": b"{}",
    "tokenizer": os.urandom(70_000),
    "spancat/cfg": b'{"labels": ["A"]}',
    MODEL: os.urandom(400_000),
    "tok2vec/model": os.urandom((1 << 20) + 17),
    "vocab/key2row": b"",
    "vocab/lookups.bin": b"\x80",
}


@dataclasses.dataclass
class Scene:
    """A checkpoint, and where it is staged."""

    checkpoint: Path
    staging: Path
    releases: Path
    sequence: int = 0

    @classmethod
    def make(cls, root: Path, files: Mapping[str, bytes] = FILES) -> Scene:
        scene = cls(root / "model-last", root / "deploy" / "staging", root / "deploy" / "releases")
        for folder in (scene.checkpoint, scene.staging, scene.releases):
            folder.mkdir(parents=True)
        for path, data in files.items():
            scene.write(path, data)
        return scene

    def write(self, path: str, data: bytes) -> None:
        target = self.checkpoint / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def stage(
        self,
        *,
        previous: Release | None = None,
        min_free_bytes: int = 0,
        durability: Durability = DURABLE,
        abandoned: Callable[[], bool] = lambda: False,
        proofs: Mapping[str, ProofFactory] | None = None,
        data: Mapping[str, bytes] | None = None,
    ) -> Staged:
        with Source.open(self.checkpoint) as source:
            tree = source.scan()
            return stage(
                plan_of(tree, proofs or {}, data or {}),
                source,
                tree,
                staging_path=self.staging,
                previous=previous,
                min_free_bytes=min_free_bytes,
                durability=durability,
                abandoned=abandoned,
            )

    def publish(self, staged: Staged) -> Release:
        self.sequence += 1
        manifest = manifest_of(staged, self.sequence)
        seal(staged, manifest)
        path = staged.path.rename(self.releases / manifest.id)
        return Release(id=manifest.id, sequence=manifest.sequence, path=path, manifest=manifest, live=True)

    def left(self) -> list[str]:
        return [entry.name for entry in self.staging.iterdir()]


def plan_of(tree: Tree, proofs: Mapping[str, ProofFactory], data: Mapping[str, bytes]) -> Plan:
    copied = [
        Planned(path=file.path, source=file, data=None, proof=proofs.get(file.path))
        for file in tree.files
        if file.path not in data
    ]
    written = [Planned(path=path, source=None, data=raw, proof=None) for path, raw in data.items()]
    return Plan(
        files=(*copied, *written),
        component="spancat",
        factory="spancat",
        labels=("B", "A"),
        spans_key="sc",
        threshold=0.5,
        lang="en",
        pipeline=("tok2vec", "spancat"),
        spacy_version=">=3.8.18,<3.9.0",
        metrics={"spans_sc_f": 0.5},
        metrics_may_be_stale=False,
        model_file=MODEL,
    )


def manifest_of(staged: Staged, sequence: int, **changes: Any) -> Manifest:
    created = datetime(2026, 11, 22, 11, 30, 45, tzinfo=UTC)
    plan = staged.plan
    manifest = Manifest(
        id=release_id(sequence, created, staged.content_sha256),
        sequence=sequence,
        rule="products",
        created_at="2026-11-22T11:30:45.000000Z",
        trigger="change",
        forced=False,
        changed=True,
        source="/runs/model-last",
        contents="pipeline",
        component=plan.component,
        factory=plan.factory,
        labels=plan.labels,
        spans_key=plan.spans_key,
        threshold=plan.threshold,
        lang=plan.lang,
        pipeline=plan.pipeline,
        spacy_version=plan.spacy_version,
        verifier=None,
        metrics=plan.metrics,
        metrics_may_be_stale=plan.metrics_may_be_stale,
        files=staged.files,
        model_sha256=staged.model_sha256,
        content_sha256=staged.content_sha256,
        previous=None,
        verification={},
    )
    return dataclasses.replace(manifest, **changes)


def contents_of(path: Path) -> dict[str, bytes]:
    """Return every file below `path`."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def path_of(fd: int) -> Path:
    """Return where an open descriptor's file is."""
    return Path(f"/proc/self/fd/{fd}").readlink()


@contextmanager
def no_descriptors_lost() -> Iterator[None]:
    """Fail if something stays open."""
    before = _descriptors()
    yield
    assert _descriptors() == before


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:  # the listing's own
            continue
    return found
