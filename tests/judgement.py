"""What is allowed: old or new, whole, in the history exactly once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def sha256(path: Path) -> str:
    """As sha256sum."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def history(deploy: Path) -> list[Line]:
    """The lines of a folder's history, read without any of the project's code."""
    text = (deploy / ".spancat-daemon" / "history.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def whole(release: Path) -> Line:
    """Asserts that a release's files are exactly those of its manifest; returns the manifest."""
    manifest: Line = json.loads((release / "release.json").read_bytes())
    present = {
        str(Path(folder, name).relative_to(release))
        for folder, _, names in os.walk(release)
        for name in names
    }
    assert present == {*manifest["files"], "release.json"}
    for path, digest in manifest["files"].items():
        content = (release / path).read_bytes()
        assert len(content) == digest["bytes"], path
        assert hashlib.sha256(content).hexdigest() == digest["sha256"], path
    assert sha256(release / "model.bin") == manifest["model_sha256"]
    return manifest


def sound(deploy: Path) -> Line:
    """Asserts that a folder at rest is as it may be; returns the live release's manifest.

    The chain of the history holds, each swap was committed exactly once, what it says is live is live, every
    release is whole, and nothing is left over from what was interrupted.
    """
    lines = history(deploy)
    previous = "0" * 64
    for number, line in enumerate(lines, 1):
        assert (line["seq"], line["prev"]) == (number, previous)
        body = {key: value for key, value in line.items() if key != "sha256"}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        previous = hashlib.sha256((line["prev"] + text).encode()).hexdigest()
        assert previous == line["sha256"], line
    intents = [line for line in lines if line["kind"] == "intent"]
    outcomes = [line for line in lines if line["kind"] in {"commit", "abort"}]
    assert [line["release"] for line in intents] == [line["release"] for line in outcomes]
    live = whole((deploy / "current").resolve())
    made_live = [line for line in lines if line["kind"] in {"commit", "recovered"}]
    assert made_live[-1]["release"] == live["id"]
    gone = {line["release"] for line in lines if line["kind"] == "pruned"}
    published = {line["release"] for line in lines if line["kind"] == "commit"} - gone
    present = {path.name for path in (deploy / "releases").iterdir()}
    if not (deploy / "current").is_symlink():
        present.add(live["id"])
    assert present == published
    for path in (deploy / "releases").iterdir():
        assert whole(path)["id"] == path.name
    state = deploy / ".spancat-daemon"
    assert not list((state / "staging").iterdir())
    assert not list((state / "trash").iterdir())
    assert {path.name for path in deploy.iterdir()} == {"current", "releases", ".spancat-daemon"}
    return live
