"""A release against its manifest, file by file."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.release.manifest import FileDigest, Manifest, content_digest
from spancat_daemon.verify.digests import Finding, digests

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"config.cfg": b"[nlp]", "spancat/model": b"weights" * 100, "vocab/deep/er/x": b"", "model.bin": b""}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    (tmp_path / "model.bin").unlink()
    (tmp_path / "model.bin").hardlink_to(tmp_path / "spancat" / "model")
    (tmp_path / "release.json").write_text("{}")
    return tmp_path


@pytest.fixture
def manifest(release: Path) -> Manifest:
    files = {
        path: FileDigest(sha256(release / path), (release / path).stat().st_size) for path in sorted(FILES)
    }
    content = content_digest(files)
    return Manifest(
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
