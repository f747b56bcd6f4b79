"""A training's side of spools and signals, as both sides agreed on it, without a training.

The real one is `spancat_daemon.training.snapshot_logger`. This one is told what to write and when, also what
no training would.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.trainer import Generation


def digests(pipeline: Path) -> Generation:
    """SHA-256 of each file of a pipeline, of an entry or of a release, without what they add to it."""
    return {
        path.relative_to(pipeline).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pipeline.rglob("*")
        if path.is_file() and path.name not in {"entry.json", "release.json", "model.bin"}
    }


class Spool:
    """Writes entries, and removes old ones as the real one does: out of ``new/`` at once."""

    def __init__(self, path: Path, *, keep: int = 3) -> None:
        self.path = path
        self.new = path / "new"
        self.written: list[Generation] = []
        self._keep = keep
        self._last = datetime(2026, 11, 22, tzinfo=UTC)

    def put(
        self,
        pipeline: Path,
        step: int,
        *,
        at: datetime | None = None,
        told: Callable[[dict[str, Any]], Any] = lambda entry: entry,
        before: Callable[[Path], object] = lambda _begun: None,
    ) -> Path:
        """Write an entry, a copy of a pipeline whose meta.json says the step.

        Args:
            pipeline: what it is a copy of.
            step: of the training.
            at: when; else a microsecond after the one before.
            told: makes of what entry.json ought to say what it says; bytes are written as they are.
            before: called with the entry right before it is renamed in.
        """
        self._last = at or self._last + timedelta(microseconds=1)
        name = f"{self._last:%Y%m%dT%H%M%S.%fZ}-{step:09d}-{os.getpid()}"
        begun = self.path / "tmp" / name
        shutil.copytree(pipeline, begun)
        meta = json.loads((begun / "meta.json").read_bytes())
        (begun / "meta.json").write_text(json.dumps({**meta, "spancat_daemon": {"step": step}}))
        found = digests(begun)
        self.written.append(found)
        files = {path: {"sha256": sha, "bytes": (begun / path).stat().st_size} for path, sha in found.items()}
        entry = told({"schema": 1, "step": step, "time": self._last.isoformat(), "files": files})
        data = entry if isinstance(entry, bytes) else json.dumps(entry).encode()
        (begun / "entry.json").write_bytes(data)
        before(begun)
        self.new.mkdir(exist_ok=True)
        begun.rename(self.new / name)
        for old in sorted(self.new.iterdir())[: -self._keep]:
            gone = self.path / "tmp" / f"{old.name}.gone"
            old.rename(gone)
            shutil.rmtree(gone)
        return self.new / name


def signal(output: Path, *checkpoints: str, step: int = 0) -> None:
    """Say that these were just written."""
    told = {
        "schema": 1, "step": step, "checkpoints": checkpoints, "final": False,
        "time": datetime.now(UTC).isoformat(), "pid": os.getpid(), "host": "here",
    }  # fmt: skip
    begun = output / ".written.json.tmp"
    begun.write_text(json.dumps(told))
    begun.replace(output / "written.json")
