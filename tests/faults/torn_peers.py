"""What people use instead, on the same source: how often their copies are no one generation."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

Stats = dict[str, tuple[int, int, int]]


@dataclass
class Peers:
    """Two copiers and their counts.

    Attributes:
        copied: copies of ``cp -r`` in a loop.
        torn: of these, those that were of no one generation.
        accepted: copies of who waits for quiet, and compares sizes, times and inodes before and after.
        accepted_torn: of these, those that were of no one generation.
    """

    copied: int = 0
    torn: int = 0
    accepted: int = 0
    accepted_torn: int = 0
    known: set[tuple[tuple[str, str], ...]] = field(default_factory=set)

    def look(self, source: Path, between: Callable[[], None] = lambda: None) -> None:
        """Copy, while `between` happens after each file; nothing has happened for longer than they wait."""
        before = _stats(source)
        copy = _copy(source, between)
        # What will be renamed over another file is in nobody's way
        named = {path: digest for path, digest in copy.items() if "/." not in f"/{path}"}
        whole = tuple(sorted(named.items())) in self.known
        self.copied += 1
        self.torn += not whole
        if before and _stats(source) == before:
            self.accepted += 1
            self.accepted_torn += not whole

    def knows(self, generations: Collection[dict[str, str]]) -> None:
        self.known.update(tuple(sorted(files.items())) for files in generations)

    def counts(self) -> dict[str, int]:
        return {
            "copied": self.copied,
            "torn": self.torn,
            "accepted": self.accepted,
            "accepted_torn": self.accepted_torn,
        }


def _files(source: Path) -> list[Path]:
    return [Path(folder, name) for folder, _, names in os.walk(source) for name in names]


def _stats(source: Path) -> Stats:
    found: Stats = {}
    for path in _files(source):
        try:
            status = path.stat()
        except OSError:
            continue
        found[str(path)] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def _copy(source: Path, between: Callable[[], None]) -> dict[str, str]:
    copied = {}
    for path in _files(source):
        try:
            copied[str(path.relative_to(source))] = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            continue
        between()
    return copied
