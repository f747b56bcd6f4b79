"""What is watched, what is known of it, and what is said about it."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  # kept at run time: dataclass fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spancat_daemon.triggers.directories import Identity
    from spancat_daemon.triggers.footprint import Fault, Footprint, Route

FALLBACK_POLL_S = 2.0
"""How often a tree is polled that should have had events."""
FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 300.0

EventName = Literal["watch.started", "watch.degraded", "watch.overflowed", "watch.lost", "watch.restored"]


@dataclass(frozen=True, slots=True)
class Watched:
    """What to watch for one key.

    Attributes:
        key: what `on_dirty` is called with.
        path: the checkpoint directory, absolute; or the literal root of `pattern`.
        pattern: an absolute path with wildcards (config.patterns), all matches of which belong to this key.
        poll_s: above 0: ask for no events, look every so many seconds (network file systems).
        contents: False: only the coming and going of checkpoints, not what happens in them; for a pattern
            whose matches are watched under keys of their own.
        beside: names of files in the directory around the checkpoint whose coming (by a rename) and going
            matters too; for a `path` without a pattern.
    """

    key: str
    path: Path
    pattern: str | None = None
    poll_s: float = 0.0
    contents: bool = True
    beside: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Something to log. `key` is None where it concerns all of them."""

    event: EventName
    key: str | None
    fields: Mapping[str, Any]


@dataclass(slots=True)
class Outbox:
    """What is to be told once the lock is released, since whoever is told can take locks of its own."""

    events: list[WatchEvent] = field(default_factory=list)
    dirty: dict[str, None] = field(default_factory=dict)

    def add(self, event: EventName, key: str | None, **fields: Any) -> None:
        """Adds an event to be told."""
        self.events.append(WatchEvent(event, key, MappingProxyType(fields)))


@dataclass(slots=True)
class State:
    """What is known of one key.

    Attributes:
        way: its route.
        started: `watch.started` was said.
        root: identity of the directory around the checkpoint when last seen; None: it was not there.
        checkpoints: identities of the checkpoints when last seen.
        directories: how many directories are watched for it.
        fault: why it is polled though it should have events.
        retry_at: when events are tried again (monotonic).
        retry_delay_s: how long to wait after the next failure.
    """

    watched: Watched
    way: Route
    started: bool = False
    root: Identity | None = None
    checkpoints: frozenset[Identity] = frozenset()
    directories: int = 0
    fault: Fault | None = None
    retry_at: float = 0.0
    retry_delay_s: float = FIRST_RETRY_S

    @property
    def polls(self) -> bool:
        """Whether it is to be polled by its configuration."""
        return self.watched.poll_s > 0

    def say_started(self, out: Outbox, *, by: str) -> None:
        """Says what is watched, and by which means."""
        self.started = True
        out.add(
            "watch.started",
            self.watched.key,
            path=self.watched.pattern or str(self.watched.path),
            by=by,
            exists=bool(self.checkpoints) or (self.watched.pattern is not None and self.root is not None),
            directories=self.directories,
        )

    def note(self, found: Footprint, out: Outbox) -> None:
        """Says when the directory around the checkpoint goes or comes; the checkpoint's own are routine."""
        key, pattern = self.watched.key, self.watched.pattern
        root = self.watched.path if pattern is not None else self.watched.path.parent
        if self.root is not None and found.root is None:
            out.add("watch.lost", key, path=str(root), reason="not there any more")
        elif self.root is None and found.root is not None:
            out.add("watch.restored", key, path=str(root), reason="there now")
        if self.root != found.root:
            out.dirty[key] = None
        self.root = found.root
        self.checkpoints = frozenset(found.checkpoints)
        self.directories = found.directories

    def note_fault(self, fault: Fault | None, out: Outbox, *, now: float) -> None:
        """Says when events fail and when they are back, and when they are to be tried again."""
        key = self.watched.key
        if fault is None:
            if self.fault is not None:
                out.add("watch.restored", key, path=self.fault.path, reason="events again")
                out.dirty[key] = None
            self.fault, self.retry_delay_s = None, FIRST_RETRY_S
            return
        if self.fault is None or self.fault.reason != fault.reason:
            out.add(
                "watch.degraded",
                key,
                path=fault.path or str(self.watched.path),
                reason=fault.reason,
                hint=fault.hint,
                poll_s=FALLBACK_POLL_S,
            )
            out.dirty[key] = None
            self.retry_at, self.retry_delay_s = now, FIRST_RETRY_S
        self.fault = fault
        if now >= self.retry_at:  # a look that an event asked for in between puts nothing off
            self.retry_at = now + self.retry_delay_s
            self.retry_delay_s = min(self.retry_delay_s * 2, LONGEST_RETRY_S)


def where(watched: Watched) -> tuple[Identity | None, frozenset[Identity] | None]:
    """Where the paths lead now: the directory around the checkpoint, and the checkpoint (None: a pattern)."""
    if watched.pattern is not None:
        return _identity(watched.path), None
    checkpoint = _identity(watched.path)
    return _identity(watched.path.parent), frozenset() if checkpoint is None else frozenset({checkpoint})


def _identity(path: Path) -> Identity | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None
