"""The daemon against what people use instead, on the same checkpoint, saved by the same trainer.

Every generation is recorded before its first byte is written, so that each copy that anybody made can be held
against all that was ever whole. Each alone, under a trainer that saves 6 MB every 200 ms: how soon after its
last file was closed a generation could be read, and what that cost. All beside each other, under a trainer
that pauses between files: how many of their copies are no generation.

    make bench ARGS='-k peers'
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.benchmarks.peers import PEERS, Peer, Running, View, Watcher
from tests.benchmarks.records import keep, rounds
from tests.benchmarks.usage import usage
from tests.benchmarks.writing import Save, journal
from tests.faults.judge import judge
from tests.faults.torn_writers import ORDER
from tests.pipelines import build
from tests.service import ROOT, Daemon, configure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

OURS: Final = "spancat-daemon"
EVERY_S: Final = 0.2
ALONE_S: Final = 6.0
AT_EASE_S: Final = 2.5
"""From the end of one save to the next, where the trainer pauses: time for every one of them to copy."""
AFTERWARDS_S: Final = 2.0
"""For what is saved last: most of them are done with it by then."""
PAUSES: Final = {0.0: (0, 12.0), 0.1: (len(ORDER), 20.0), 1.2: (4, 40.0), 5.0: (1, 45.0)}
"""Seconds between two files: at how many places of a save at most, and for how long it is done."""


@dataclass
class Found:
    """What one of them did.

    Attributes:
        saves: generations that were written whole.
        views: copies that could be read.
        torn: of these, those that are no generation.
        live_s: from the last close of a generation to when it could be read, where that was seen.
        detection_s: from there to when it began to be staged, where that is said.
        cpu_s: of all its processes, in all.
        written_bytes: of them too.
    """

    saves: int = 0
    views: int = 0
    torn: int = 0
    live_s: list[float] = field(default_factory=list)
    detection_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    written_bytes: int = 0

    def add(self, saves: Sequence[Save], views: Sequence[View]) -> None:
        known = {frozenset(save.files.items()) for save in saves}
        first: dict[frozenset[tuple[str, str]], float] = {}
        for view in views:
            content = frozenset(view.files.items())
            self.torn += content not in known
            first.setdefault(content, view.since_s)
        self.views += len(views)
        for save in saves:
            if save.written_s is None:
                continue
            self.saves += 1
            seen_s = first.get(frozenset(save.files.items()))
            if seen_s:
                self.live_s.append(seen_s - save.written_s)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("not_first", tmp_path_factory.mktemp("base") / "base", steps=2, width=96, rows=3300)


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    """Those that are there; the others are named when the rest was measured."""
    yield [peer for peer in PEERS if not peer.lacking]
    for peer in PEERS:
        if peer.lacking:
            print(f"not measured: {peer.name}: {peer.lacking}")  # noqa: T201


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_is_there(peer: Peer) -> None:
    """A peer that is missing is a skip that names its package."""
    if peer.lacking:
        pytest.skip(peer.lacking)


def test_each_alone(base: Path, tmp_path: Path, peers: list[Peer]) -> None:
    chosen: dict[str, Peer | None] = {OURS: None}
    chosen |= {peer.name: peer for peer in peers if not peer.rare}
    found = {name: Found() for name in chosen}
    order = random.Random(0)  # noqa: S311  # an order, not a secret
    for window in range(max(2, rounds(4) // 2)):
        for number, name in enumerate(order.sample(list(chosen), len(chosen))):
            folder = tmp_path / f"{window}-{number}"
            peer = chosen[name]
            at_work = _Peer(peer, base, folder) if peer is not None else _Daemon(base, folder)
            with at_work:
                saves = at_work.train(0.0, 0, EVERY_S, ALONE_S)
            at_work.report(found[name], saves)
    _keep("peers_alone", {"every_s": EVERY_S, "seconds": ALONE_S}, found)
    assert found[OURS].torn == 0
    assert found[OURS].views


@pytest.mark.parametrize("pause_s", PAUSES)
def test_all_beside(pause_s: float, base: Path, tmp_path: Path, peers: list[Peer]) -> None:
    most, seconds = PAUSES[pause_s]
    found = {OURS: Found(), **{peer.name: Found() for peer in peers}}
    ours = _Daemon(base, tmp_path / "ours")
    with ExitStack() as all_of_them:
        all_of_them.enter_context(ours)
        others = [_Peer(peer, base, tmp_path / str(n), ours.source) for n, peer in enumerate(peers)]
        for other in others:
            all_of_them.enter_context(other)
        saves = ours.train(pause_s, most, AT_EASE_S, seconds * rounds(10) / 10)
    for name, at_work in zip(found, [ours, *others], strict=True):
        at_work.report(found[name], saves)
    figures = {"pause_s": pause_s, "most_pauses": most, "gap_s": AT_EASE_S, "seconds": seconds}
    _keep(f"peers_beside_{pause_s:g}".replace(".", "_"), figures, found)
    assert found[OURS].torn == 0
    assert found[OURS].views


def _keep(name: str, figures: dict[str, Any], found: dict[str, Found]) -> None:
    keep(
        name,
        {
            **figures,
            "commands": {peer.name: {"command": peer.command, "script": peer.script} for peer in PEERS},
            "lacking": {peer.name: peer.lacking for peer in PEERS if peer.lacking},
            "found": {name: asdict(one) for name, one in found.items()},
        },
    )
    print(f"\n{name}")  # noqa: T201  # a measurement is there to be read
    for who, one in found.items():
        live = statistics.median(one.live_s) * 1000 if one.live_s else float("nan")
        print(  # noqa: T201  # as above
            f"{who}: {one.saves} saves, {one.views} views, {one.torn} torn, live {len(one.live_s)} "
            f"after {live:.0f} ms, {one.cpu_s:.2f} s, {one.written_bytes / 1e6:.1f} MB"
        )


class _AtWork:
    """Somebody who takes what a trainer writes; a context manager."""

    def __init__(self, base: Path, folder: Path, source: Path | None = None) -> None:
        self._base = base
        self.folder = folder
        self.source = source or folder / "runs/model-best"
        self.source.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        self.stack = ExitStack()

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def report(self, found: Found, saves: Sequence[Save]) -> None:
        """Add what it did; it was ended."""
        raise NotImplementedError

    def train(self, pause_s: float, most_pauses: int, every_s: float, seconds: float) -> list[Save]:
        """Let it save for so long; return what it saved."""
        record = self.folder / "journal.jsonl"
        arguments = [self._base, self.source, record, pause_s, most_pauses, every_s, seconds]
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.writing", *map(str, arguments)], check=True, cwd=ROOT
        )
        time.sleep(AFTERWARDS_S)
        return journal(record)


class _Peer(_AtWork):
    def __init__(self, peer: Peer, base: Path, folder: Path, source: Path | None = None) -> None:
        super().__init__(base, folder, source)
        self._running = Running(peer, self.source, folder)

    def __enter__(self) -> None:
        self.stack.enter_context(self._running)

    def report(self, found: Found, saves: Sequence[Save]) -> None:
        found.add(saves, self._running.views())
        found.cpu_s += self._running.used.cpu_s
        found.written_bytes += self._running.used.written_bytes


class _Daemon(_AtWork):
    def __init__(self, base: Path, folder: Path) -> None:
        super().__init__(base, folder)
        self._deploy = folder / "models/products"
        self._daemon = Daemon(configure(folder, more="[watch.keep]\nlast = 0"))
        self._watcher = Watcher(self._deploy / "current")

    def __enter__(self) -> None:
        self.stack.enter_context(self._daemon)
        self._before = usage(self._daemon.pid)
        self.stack.enter_context(self._watcher)
        self.stack.callback(self._measure)

    def _measure(self) -> None:
        self._after = usage(self._daemon.pid)

    def report(self, found: Found, saves: Sequence[Save]) -> None:
        found.add(saves, self._watcher.views())
        generations = [dict(save.files) for save in saves]
        assert judge(self._deploy, generations, log=self._daemon.events) == []
        found.cpu_s += self._after.cpu_s - self._before.cpu_s
        found.written_bytes += self._after.written_bytes - self._before.written_bytes
        found.detection_s += list(self._detections(saves))

    def _detections(self, saves: Sequence[Save]) -> Iterator[float]:
        """From the last close of a generation to the first look at it that began to stage it."""
        begun = [
            datetime.fromisoformat(event["timestamp"]).timestamp()
            for event in self._daemon.events
            if event["event"] == "snapshot.started"
        ]
        written = [save.written_s for save in saves if save.written_s is not None]
        for one, next_one in zip(written, [*written[1:], float("inf")], strict=True):
            yield from [moment - one for moment in begun if one <= moment < next_one][:1]
