from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import re
import shutil
import subprocess
import textwrap
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spancat_daemon.release import manifest as module
from spancat_daemon.release.manifest import (
    BadManifest,
    FileDigest,
    Manifest,
    content_digest,
    dump,
    parse,
    parse_release_id,
    read,
    release_id,
)
from tests.unit.release.staging_scene import MODEL, Scene, manifest_of, sha256

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.release.folder import Release

FILES = {
    path: FileDigest(sha256=sha256(path.encode()), bytes=len(path)) for path in ("model.bin", MODEL, "Ä")
}
CONTENT = content_digest(FILES)


def a_manifest(**changes: Any) -> Manifest:
    manifest = Manifest(
        id=release_id(42, datetime(2026, 11, 22, 11, 30, 45, tzinfo=UTC), CONTENT),
        sequence=42,
        rule="products",
        created_at="2026-11-22T11:30:45.000123Z",
        trigger="change",
        forced=False,
        changed=True,
        source="/runs/model-last",
        contents="pipeline",
        component="spancat",
        factory="spancat",
        labels=("ZEBRA", "ÄPFEL", "ANT"),
        spans_key="sc",
        threshold=0.5,
        lang="en",
        pipeline=("tok2vec", "spancat"),
        spacy_version=">=3.8.18,<3.9.0",
        verifier={"spacy": "3.8.18", "python": "3.11.2"},
        metrics={"spans_sc_f": 0.784, "spancat_loss": 1.5, "spans_sc_per_type": {"ANT": {"p": 1.0}}},
        metrics_may_be_stale=True,
        files=FILES,
        model_sha256=FILES["model.bin"].sha256,
        content_sha256=CONTENT,
        previous=None,
        verification={"gates": []},
    )
    return dataclasses.replace(manifest, **changes)


def changed(**values: Any) -> bytes:
    return json.dumps(json.loads(dump(a_manifest())) | values).encode()


@pytest.fixture
def release(tmp_path: Path) -> Release:
    scene = Scene.make(tmp_path)
    scene.write("back\\slash 'and' space", b"x")
    scene.write("Ümlaut/日本", b"y")
    return scene.publish(scene.stage())


class TestStandardTools:
    """What the module's documentation tells people to type, typed."""

    def commands(self) -> tuple[str, str, str]:
        blocks = re.findall(r"::\n\n((?:    .+\n?)+)", inspect.getdoc(module) or "")
        checks, identity = (textwrap.dedent(block) for block in blocks)
        python, jq = re.split(r"\n(?=jq )", checks.strip())
        return python.replace("\n  ", " "), jq, identity

    @pytest.mark.parametrize("tool", ["python3", "jq"])
    def test_every_file_is_what_the_manifest_says(self, release: Release, tool: str) -> None:
        command = self.commands()[("python3", "jq").index(tool)]
        assert command.startswith(tool)
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
        # A backslash in a name takes sha256sum's own escapes; trained pipelines have none.
        (release.path / "back\\slash 'and' space").rename(release.path / "back")
        text = (release.path / "release.json").read_text().replace("back\\\\slash 'and' space", "back")
        (release.path / "release.json").unlink()
        (release.path / "release.json").write_text(text)
        good = subprocess.run(
            ["sh", "-c", command], cwd=release.path, check=True, capture_output=True, text=True
        )
        assert good.stdout.count(": OK\n") == len(release.manifest.files)
        (release.path / MODEL).chmod(0o644)
        (release.path / MODEL).write_bytes(b"other")
        bad = subprocess.run(
            ["sh", "-c", command], cwd=release.path, check=False, capture_output=True, text=True
        )
        assert bad.returncode != 0
        assert f"{MODEL}: FAILED\n" in bad.stdout

    def test_the_identity_of_the_content(self, release: Release) -> None:
        command = self.commands()[2]
        done = subprocess.run(
            ["sh", "-c", command], cwd=release.path, check=True, capture_output=True, text=True
        )
        assert done.stdout.split() == [release.manifest.content_sha256, "-"]


class TestContentDigest:
    def test_depends_on_every_path_and_digest_and_on_no_order(self) -> None:
        assert content_digest(dict(reversed(FILES.items()))) == CONTENT
        assert content_digest({**FILES, "new": FILES[MODEL]}) != CONTENT
        assert content_digest({**FILES, MODEL: FILES["Ä"]}) != CONTENT
        assert content_digest({("b" if path == "Ä" else path): d for path, d in FILES.items()}) != CONTENT


class TestReleaseId:
    def test_reads_as_number_time_and_digest(self) -> None:
        created = datetime(2026, 11, 22, 13, 30, 45, 999999, tzinfo=timezone(timedelta(hours=2)))
        assert release_id(42, created, "3f2a9c1b" + "0" * 56) == "000042-20261122T113045Z-3f2a9c1b"
        assert release_id(1_234_567, created, "0" * 64).startswith("1234567-")

    @given(st.integers(1, 10**12), st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1)))  # noqa: DTZ001
    def test_gives_its_number_back(self, sequence: int, created: datetime) -> None:
        assert parse_release_id(release_id(sequence, created, CONTENT)) == sequence

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "current",
            "42-20261122T113045Z-3f2a9c1b",
            "0000042-20261122T113045Z-3f2a9c1b",
            "000042-20261122T113045Z-3f2a9c1",
            "000042-20261122T113045Z-3F2A9C1B",
            "000042-20261122T113045Z-3f2a9c1b\n",
            "٠٠٠٠٤٢-20261122T113045Z-3f2a9c1b",
            ".000042-20261122T113045Z-3f2a9c1b",
        ],
    )
    def test_of_nothing_else(self, name: str) -> None:
        assert parse_release_id(name) is None


class TestDump:
    def test_comes_back_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "release.json").write_bytes(dump(a_manifest()))
        assert read(tmp_path / "release.json") == a_manifest()

    @given(
        st.dictionaries(
            st.text(min_size=1),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                max_leaves=8,
            ),
        )
    )
    def test_any_metrics_can_be_written_and_read(self, metrics: dict[str, Any]) -> None:
        raw = dump(a_manifest(metrics=metrics))
        assert dump(parse(raw, where="")) == raw

    def test_is_stable_and_for_human_eyes(self) -> None:
        again = a_manifest(
            files=dict(reversed(FILES.items())),
            metrics={key: a_manifest().metrics[key] for key in sorted(a_manifest().metrics, reverse=True)},
        )
        assert dump(again) == dump(a_manifest())
        text = dump(a_manifest()).decode()
        assert text.endswith("\n}\n")
        assert '\n  "labels": [\n    "ZEBRA",\n    "ÄPFEL",\n    "ANT"\n  ],\n' in text
        document = json.loads(text)
        assert list(document)[:4] == ["schema", "id", "sequence", "rule"]
        assert list(document["files"]) == sorted(FILES)

    def test_what_json_can_not_say(self) -> None:
        metrics = {
            "nan": math.nan,
            "inf": -math.inf,
            "big": 10**30,
            "huge": 10**400,
            "half": "\ud83d",
            1: "int",
        }
        document = json.loads(dump(a_manifest(metrics=metrics, source="/runs/\udcff", threshold=math.inf)))
        assert document["metrics"] == {
            "nan": None,
            "inf": None,
            "big": 1e30,
            "huge": None,
            "half": "\\ud83d",
            "1": "int",
        }
        assert document["source"] == "/runs/\\xff"
        assert document["threshold"] is None

    def test_metrics_without_end(self) -> None:
        endless: dict[str, Any] = {}
        endless["more"] = endless
        raw = dump(a_manifest(metrics=endless))
        assert raw.count(b'"more"') < 100


class TestRead:
    def test_what_it_does_not_know_is_left_to_later_versions(self) -> None:
        assert parse(changed(tomorrow={"a": 1}), where="") == a_manifest()

    def test_a_newer_schema_says_so(self) -> None:
        with pytest.raises(BadManifest, match=r"here: has schema 2, .*newer spancat-daemon"):
            parse(json.dumps({"schema": 2, "id": {"quite": "different"}}).encode(), where="here")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("schema", 0),
            ("schema", True),
            ("schema", "1"),
            ("schema", 1.0),
            ("id", "x"),
            ("id", 42),
            ("sequence", 0),
            ("sequence", -1),
            ("sequence", 42.0),
            ("sequence", True),
            ("rule", None),
            ("created_at", "2026-11-22"),
            ("created_at", "2026-13-22T11:30:45.000123Z"),
            ("created_at", "2026-11-22T11:30:45.000123+00:00"),
            ("created_at", 5),
            ("forced", 0),
            ("changed", "yes"),
            ("labels", "ABC"),
            ("labels", ["A", 1]),
            ("labels", {"A": "B"}),
            ("threshold", "0.5"),
            ("threshold", True),
            ("pipeline", None),
            ("verifier", []),
            ("verifier", {"spacy": 3}),
            ("metrics", []),
            ("metrics", None),
            ("files", []),
            ("files", {"a": "b"}),
            ("files", {"a": {"sha256": "0" * 64}}),
            ("files", {"a": {"sha256": "0" * 63, "bytes": 1}}),
            ("files", {"a": {"sha256": "A" * 64, "bytes": 1}}),
            ("files", {"a": {"sha256": "0" * 64, "bytes": -1}}),
            ("files", {"a": {"sha256": "0" * 64, "bytes": True}}),
            ("files", {"../a": {"sha256": "0" * 64, "bytes": 1}}),
            ("files", {"/a": {"sha256": "0" * 64, "bytes": 1}}),
            ("files", {"a//b": {"sha256": "0" * 64, "bytes": 1}}),
            ("files", {"": {"sha256": "0" * 64, "bytes": 1}}),
            ("files", {"a\0b": {"sha256": "0" * 64, "bytes": 1}}),
            ("model_sha256", ""),
            ("content_sha256", None),
            ("previous", 41),
            ("verification", "fine"),
        ],
    )
    def test_names_the_key_that_is_wrong(self, key: str, value: Any) -> None:
        with pytest.raises(BadManifest, match=rf"^/the/path: '{key}' is not "):
            parse(changed(**{key: value}), where="/the/path")

    def test_what_it_was_derived_from_may_be_missing_or_said(self) -> None:
        document = json.loads(dump(a_manifest()))
        assert document.pop("derived_from") is None
        assert parse(json.dumps(document).encode(), where="").derived_from is None
        assert parse(changed(derived_from="a" * 64), where="").derived_from == "a" * 64
        with pytest.raises(BadManifest, match="'derived_from' is not a SHA-256 or null"):
            parse(changed(derived_from="a" * 63), where="")

    @pytest.mark.parametrize(
        "key", [field.name for field in dataclasses.fields(Manifest) if field.name != "derived_from"]
    )
    def test_names_the_key_that_is_missing(self, key: str) -> None:
        document = json.loads(dump(a_manifest()))
        del document[key]
        with pytest.raises(BadManifest, match=f"lacks '{key}'"):
            parse(json.dumps(document).encode(), where="")

    def test_parts_that_contradict_each_other(self) -> None:
        with pytest.raises(BadManifest, match="says sequence 43 and id '000042-"):
            parse(changed(sequence=43), where="")
        with pytest.raises(BadManifest, match="not the digest of its files"):
            parse(changed(content_sha256="0" * 64), where="")

    @pytest.mark.parametrize(
        "raw", [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, dump(a_manifest())[:-20]]
    )
    def test_what_is_no_manifest(self, raw: bytes) -> None:
        with pytest.raises(BadManifest, match=r"^here: is not "):
            parse(raw, where="here")

    def test_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MANIFEST_LIMIT_BYTES", 100)
        (tmp_path / "release.json").write_bytes(dump(a_manifest()))
        with pytest.raises(BadManifest, match=r"release.json: is larger than 100 bytes"):
            read(tmp_path / "release.json")

    def test_what_is_not_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "release.json"
        with pytest.raises(BadManifest, match=r"release.json: can't be read: No such file"):
            read(path)
        path.mkdir()
        with pytest.raises(BadManifest, match="can't be read"):
            read(path)
        path.rmdir()
        (tmp_path / "target").write_bytes(dump(a_manifest()))
        path.symlink_to("target")
        with pytest.raises(BadManifest, match="can't be read"):
            read(path)

    def test_does_not_wait_for_a_fifo(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "release.json")
        with pytest.raises(BadManifest, match="is not JSON"):
            read(tmp_path / "release.json")


def test_manifest_of_scene_is_valid(tmp_path: Path) -> None:
    staged = Scene.make(tmp_path).stage()
    assert parse(dump(manifest_of(staged, 3)), where="").files == staged.files
