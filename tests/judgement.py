"""What is allowed, as asserts; `tests.faults.judge` says what that is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.faults import judge as model
from tests.faults.judge import Line, history, sha256

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Line", "history", "sha256", "sound", "whole"]


def whole(release: Path) -> Line:
    """Asserts that a release's files are exactly those of its manifest; returns the manifest."""
    assert model.whole(release) == []
    manifest: Line = json.loads((release / "release.json").read_bytes())
    return manifest


def sound(deploy: Path) -> Line:
    """Asserts that a folder at rest, with something live, is as it may be; returns what is live."""
    assert model.judge(deploy) == []
    live = model.live(deploy)
    assert live is not None
    return live
