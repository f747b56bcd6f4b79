"""A running filesystem trigger that remembers what it told, and a barrier to ask it at the right moment."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spancat_daemon.triggers.filesystem import FilesystemTrigger, Watched, WatchEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_S = 120.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.002)


def descriptors_in_use() -> set[tuple[str, str]]:
    """Each open descriptor and what it leads to."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one of the listing itself
            found.add((link.name, str(link.readlink())))
    return found


def write_checkpoint(path: Path, content: bytes = b"1") -> None:
    for name in ("tokenizer", "meta.json", "config.cfg", "spancat/cfg", "spancat/model", "vocab/lookups.bin"):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def replace_as_trainer(best: Path, last: Path) -> None:
    if best.exists():
        shutil.rmtree(best)
    shutil.copytree(last, best)


class Jumping:
    """A monotonic clock that can be put ahead."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class Watching:
    def __init__(self, canary: Path) -> None:
        self.dirty: Counter[str] = Counter()
        self.events: list[WatchEvent] = []
        self.before_dirty: Callable[[str], None] = lambda _key: None
        self.clock = Jumping()
        self.trigger = FilesystemTrigger(
            on_dirty=self._on_dirty, on_event=self.events.append, canary_path=canary, monotonic=self.clock
        )

    def _on_dirty(self, key: str) -> None:
        self.before_dirty(key)
        self.dirty[key] += 1

    def barrier(self) -> None:
        """Returns when everything that happened before has been told."""
        for _ in range(2):  # the first lets the keeper begin a round, the second shows that it ended it
            before = self.trigger._canary_back
            self.trigger.touch_canary()
            wait_for(lambda before=before: self.trigger._canary_back > before, "the canary's return")  # type: ignore[misc]

    def dirtied_by(self, action: Callable[[], Any], *, at_least: set[str]) -> None:
        """Fails unless the action, and nothing before it, makes these keys dirty."""
        self.barrier()
        self.dirty.clear()
        action()
        wait_for(lambda: at_least <= set(self.dirty), f"dirty {at_least}")
        self.barrier()

    def left_clean_by(self, action: Callable[[], Any], key: str) -> None:
        self.barrier()
        self.dirty.clear()
        action()
        self.barrier()
        assert self.dirty[key] == 0

    def told(self, event: str) -> list[WatchEvent]:
        return [told for told in self.events if told.event == event]

    def wait_told(self, event: str, number: int = 1) -> WatchEvent:
        wait_for(lambda: len(self.told(event)) >= number, event)
        return self.told(event)[number - 1]

    @property
    def watches(self) -> int:
        assert self.trigger._directories is not None
        count = self.trigger._directories.count()
        assert self.trigger._directories.kernel_count() == count
        return count


@contextmanager
def watching(tmp_path: Path, *watched: Watched) -> Iterator[Watching]:
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    running = Watching(state / "canary")
    running.trigger.set_watched(watched)
    threads = set(threading.enumerate())
    running.trigger.start()
    try:
        running.barrier()  # from here on the canary is one of the watches
        yield running
    finally:
        running.before_dirty = lambda _key: None
        running.trigger.stop()
    left = [thread.name for thread in set(threading.enumerate()) - threads]
    assert not left
