"""What there is to ask about a checkpoint, as its manifest would say it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from spancat_daemon.verify.verdict import Subject

if TYPE_CHECKING:
    from pathlib import Path


def subject_of(path: Path, component: str = "spancat", **said: Any) -> Subject:
    """Return a pipeline as a subject, by what its files say; `said` is what its manifest says otherwise."""
    cfg = json.loads((path / component / "cfg").read_text())
    facts = {
        "model_sha256": hashlib.sha256((path / component / "model").read_bytes()).hexdigest(),
        "labels": tuple(cfg["labels"]),
        "spans_key": cfg["spans_key"],
        "threshold": cfg["threshold"],
    }
    return Subject(path=path, component=component, **{**facts, **said})
