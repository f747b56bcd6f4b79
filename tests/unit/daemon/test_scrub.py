"""Scrubbing real folders with fake clocks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.daemon import scrub
from spancat_daemon.daemon.scrub import LastScrubs, Pace, Scrubber, read_when_idle
from spancat_daemon.release import lease
from spancat_daemon.release.removal import remove_tree
from spancat_daemon.release.swap import make_live
from tests.integration.release.fakes import VOCABULARY, Bench, now
from tests.service import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAY_S = 86400.0
WEEK = timedelta(days=7)


class Log:
    """What was logged, with what it was bound to."""

    def __init__(self, events: list[dict[str, Any]] | None = None, **bound: Any) -> None:
        self.events: list[dict[str, Any]] = [] if events is None else events
        self._bound = bound

    def bind(self, **more: Any) -> Log:
        return Log(self.events, **self._bound, **more)

    def info(self, event: str, **said: Any) -> None:
        self.events.append({"event": event, **self._bound, **said})

    warning = error = info

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


@dataclass
class Scene:
    """Some folders, a scrubber, its clock, and what it told."""

    root: Path
    benches: dict[str, Bench] = field(default_factory=dict)
    time: datetime = field(default_factory=lambda: now() + timedelta(minutes=1))  # after what is published
    log: Log = field(default_factory=Log)
    told: list[tuple[str, str, bool, list[tuple[str, str]]]] = field(default_factory=list)
    while_telling: Callable[[], None] = lambda: None

    def bench(self, name: str = "products") -> Bench:
        if name not in self.benches:
            self.benches[name] = Bench.at(self.root / name)
        return self.benches[name]

    def scrubber(
        self, *, rate_bytes: int = 0, every_s: float = WEEK.total_seconds(), **more: Any
    ) -> Scrubber:
        settings: dict[str, Any] = {
            "deployments": lambda: [
                SimpleNamespace(folder=bench.folder, target=SimpleNamespace(rule=name))
                for name, bench in self.benches.items()
            ],
            "state_path": self.root / "scrub.json",
            "on_corrupted": self._tell,
            "log": self.log,
            "now": lambda: self.time,
        }
        made = Scrubber(**settings | more)
        made.configure(every_s=every_s, rate_bytes=rate_bytes)
        return made

    def _tell(self, deployment: Any, release: Any, findings: Any) -> None:
        assert not lease.is_leased(release.path)
        found = [(finding.path, finding.kind) for finding in findings]
        self.told.append((deployment.target.rule, release.id, release.live, found))
        self.while_telling()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def flip(path: Path) -> None:
    """One bit, as it rots: no time of the file's changes."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 128]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# -- when ---------------------------------------------------------------------------------------------------


def test_nothing_is_due_before_the_oldest_release_is_old_and_then_again_over_restarts(scene: Scene) -> None:
    release = scene.bench().publish().release
    made = datetime.fromisoformat(release.manifest.created_at)
    scene.time = made + WEEK - timedelta(seconds=1)
    scene.scrubber().turn()
    assert scene.log.events == []
    scene.time = first = made + WEEK
    scene.scrubber().turn()
    (done,) = scene.log.events
    assert (done["event"], done["rule"], done["releases"], done["corrupted"]) == (
        "scrub.done",
        "products",
        1,
        0,
    )
    scene.scrubber().turn()
    scene.time = first + WEEK - timedelta(seconds=1)
    scene.scrubber().turn()
    assert len(scene.log.events) == 1
    scene.time = first + WEEK
    scene.scrubber().turn()
    scene.scrubber().turn()
    assert len(scene.log.events) == 2


def test_each_folder_has_its_own_time_and_one_that_is_gone_is_forgotten(scene: Scene, tmp_path: Path) -> None:
    for name in ("a", "b\udcff"):
        scene.bench(name).publish()
    scrubber = scene.scrubber()
    scene.time += WEEK
    scrubber.turn()
    assert [event["rule"] for event in scene.log.named("scrub.done")] == ["a", "b\udcff"]
    kept = json.loads((tmp_path / "scrub.json").read_text())
    assert set(kept) == {str(tmp_path / "a"), f"{tmp_path}/b\\xff"}
    assert set(kept.values()) == {scene.time.isoformat()}
    del scene.benches["b\udcff"]
    scene.time += WEEK
    scrubber.turn()
    assert set(json.loads((tmp_path / "scrub.json").read_text())) == {str(tmp_path / "a")}
    assert not (tmp_path / "scrub.json.new").exists()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"%s": 7}', b'{"%s": "yesterday"}', b'{"%s": "2026-01-01"}']
)
def test_a_damaged_file_means_sooner(scene: Scene, tmp_path: Path, content: bytes) -> None:
    folder = scene.bench().folder
    scene.bench().publish()
    content = content.replace(b"%s", os.fsencode(folder.path))
    (tmp_path / "scrub.json").write_bytes(content)
    later = scene.time + WEEK
    last = LastScrubs(tmp_path / "scrub.json").last(folder, later)
    assert last is not None
    assert last < later - WEEK + timedelta(hours=1)


def test_a_clock_that_was_ahead_puts_it_off_by_one_interval_at_most(scene: Scene, tmp_path: Path) -> None:
    folder = scene.bench().folder
    times = LastScrubs(tmp_path / "scrub.json")
    times.mark(folder, scene.time + timedelta(days=3650), among=[folder])
    times = LastScrubs(tmp_path / "scrub.json")
    assert times.last(folder, scene.time) == scene.time
    assert times.last(folder, scene.time + WEEK) == scene.time


def test_never_and_without_a_place_to_keep_it(scene: Scene, tmp_path: Path) -> None:
    scene.bench().publish()
    scene.time += WEEK
    scene.scrubber(every_s=0).turn()
    assert scene.log.events == []
    scrubber = scene.scrubber(state_path=tmp_path / "missing" / "scrub.json")
    scrubber.turn()
    scrubber.turn()
    assert len(scene.log.named("scrub.done")) == 1


def test_a_folder_that_is_not_there_waits_until_it_is(scene: Scene, tmp_path: Path) -> None:
    folder = scene.bench().folder
    scene.bench().publish()
    scrubber = scene.scrubber()
    scene.time += WEEK
    folder.path.rename(tmp_path / "unmounted")
    scrubber.turn()
    LastScrubs(tmp_path / "scrub.json").mark(folder, scene.time - WEEK, among=[folder])
    scrubber = scene.scrubber()
    scrubber.turn()
    assert scene.log.events == []
    (tmp_path / "unmounted").rename(folder.path)
    scrubber.turn()
    assert len(scene.log.named("scrub.done")) == 1


def test_a_folder_that_can_not_be_read_is_tried_again_later_and_holds_up_no_other(scene: Scene) -> None:
    clock = [0.0]
    scene.bench("a").publish()
    scene.bench("b").publish()
    current = scene.bench("a").folder.current
    leads_to = current.readlink()
    current.unlink()
    current.write_text("not ours")
    scene.time += WEEK
    scrubber = scene.scrubber(monotonic=lambda: clock[0])
    scrubber.turn()
    scrubber.turn()
    (failed,) = scene.log.named("scrub.failed")
    assert failed["rule"] == "a"
    assert "neither a link nor a directory" in failed["reason"]
    assert [event["rule"] for event in scene.log.named("scrub.done")] == ["b"]
    current.unlink()
    current.symlink_to(leads_to)
    clock[0] += scrub.RETRY_S
    scrubber.turn()
    assert [event["rule"] for event in scene.log.named("scrub.done")] == ["b", "a"]


# -- what ---------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_told_once_each_time_with_the_live_one_first(scene: Scene) -> None:
    bench = scene.bench()
    oldest = bench.publish().release
    middle = bench.publish().release
    live = bench.publish().release
    flip(oldest.path / "config.cfg")
    flip(live.path / "spancat/model")
    scene.time += WEEK
    scrubber = scene.scrubber()
    scrubber.turn()
    assert scene.told == [
        ("products", live.id, True, [("model.bin", "altered"), ("spancat/model", "altered")]),
        ("products", oldest.id, False, [("config.cfg", "altered")]),
    ]
    assert middle.id not in str(scene.told)
    (done,) = scene.log.events
    assert (done["releases"], done["corrupted"], done["incomplete"]) == (3, 2, 0)
    scrubber.turn()
    assert len(scene.told) == 2
    scene.time += WEEK
    scrubber.turn()
    assert len(scene.told) == 4


def test_an_inode_of_many_releases_is_read_once_and_told_of_each(scene: Scene) -> None:
    bench = scene.bench()
    releases = [bench.publish(model=b"%d" % number).release for number in range(5)]
    shared = releases[0].path / "vocab/strings.json"
    assert shared.stat().st_nlink == 5
    flip(shared)
    scene.time += WEEK
    scene.scrubber().turn()
    assert len(scene.told) == 5
    own = sum(
        (release.path / name).stat().st_size
        for release in releases
        for name in ("config.cfg", "spancat/model", "release.json")
    )
    assert scene.log.named("scrub.done")[0]["bytes_read"] == own + len(VOCABULARY)


def test_what_is_not_known_is_not_corrupted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    release = scene.bench().publish().release
    taken = lease.take

    def refuse(path: Path) -> lease.Lease:
        if path == release.path:
            raise PermissionError(13, "Permission denied", str(path))
        return taken(path)

    monkeypatch.setattr(lease, "take", refuse)
    scene.time += WEEK
    scene.scrubber().turn()
    assert scene.told == []
    (incomplete,) = scene.log.named("scrub.incomplete")
    assert incomplete["release"] == release.id
    assert "Permission denied" in incomplete["reason"]
    assert scene.log.named("scrub.done")[0]["incomplete"] == 1


def test_a_damaged_manifest_is_told(scene: Scene) -> None:
    bench = scene.bench()
    old = bench.publish().release
    live = bench.publish().release
    for release in (old, live):
        (release.path / "release.json").chmod(0o644)
        (release.path / "release.json").write_text("{")
    scene.time += WEEK
    LastScrubs(scene.root / "scrub.json").mark(bench.folder, scene.time - WEEK, among=[bench.folder])
    scene.scrubber().turn()
    told = {event["path"]: event["live"] for event in scene.log.named("release.unreadable")}
    assert told == {old.path: False, live.path: True}
    assert scene.log.named("scrub.done")[0]["unreadable"] == 2


def test_releases_that_go_or_move_meanwhile_are_no_finding(scene: Scene, tmp_path: Path) -> None:
    """Under it: one is pruned, one deleted while it is read, and the live one replaced, which moves it."""
    bench = scene.bench()
    releases = [bench.publish(kind="exchange", model=bytes(5 << 20)).release for _ in range(4)]
    deleted, pruned, _, live = releases
    assert live.path == bench.folder.current
    clock = [0.0]
    steps: list[Callable[[], object]] = [
        lambda: bench.publish(kind="exchange"),
        lambda: remove_tree(bench.folder.releases_path / pruned.id),
    ]

    def monotonic() -> float:
        clock[0] += 1000.0  # never anything to wait for
        if steps and lease.is_leased(bench.folder.current):
            steps.pop(0)()
        elif lease.is_leased(bench.folder.releases_path / deleted.id):
            remove_tree(bench.folder.releases_path / deleted.id)
        return clock[0]

    scene.time += WEEK
    scene.scrubber(monotonic=monotonic, rate_bytes=1 << 20).turn()
    assert not (bench.folder.releases_path / deleted.id).exists()
    assert (bench.folder.releases_path / live.id).is_dir(), "it was not replaced meanwhile"
    assert scene.told == []
    assert scene.log.named("scrub.incomplete") == []
    assert scene.log.named("scrub.done")[0]["releases"] == 4


def test_a_release_is_found_where_it_moved_meanwhile(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """With swap = "exchange": the live one is replaced before its turn, and one comes back before its own."""
    bench = scene.bench()
    back, replaced = (bench.publish(kind="exchange").release for _ in range(2))
    for path in (bench.folder.releases_path / back.id, replaced.path):
        flip(path / "config.cfg")
    look = bench.folder.survey

    def survey() -> Any:
        found = look()
        monkeypatch.undo()
        bench.publish(kind="exchange")
        return found

    def come_back() -> None:
        if not bench.folder.find(back.id).live:
            release, history = bench.folder.find(back.id), bench.history
            make_live(
                bench.folder, release, kind="exchange", history=history, details={}, monotonic=lambda: 0.0
            )

    monkeypatch.setattr(bench.folder, "survey", survey)
    scene.while_telling = come_back
    scene.time += WEEK
    LastScrubs(scene.root / "scrub.json").mark(bench.folder, scene.time - WEEK, among=[bench.folder])
    scrubber = scene.scrubber()
    scrubber.turn()
    assert scene.told == [
        ("products", replaced.id, False, [("config.cfg", "altered")]),
        ("products", back.id, True, [("config.cfg", "altered")]),
    ]


def test_whether_it_is_live_is_told_as_of_then(scene: Scene) -> None:
    bench = scene.bench()
    old = bench.publish().release
    live = bench.publish().release
    flip(live.path / "config.cfg")
    flip(old.path / "config.cfg")

    def swap() -> None:
        bench.folder.current.unlink()
        bench.folder.current.symlink_to(f"releases/{old.id}")

    scene.while_telling = swap
    scene.time += WEEK
    scene.scrubber().turn()
    assert [(release, is_live) for _, release, is_live, _ in scene.told] == [(live.id, True), (old.id, True)]


# -- how ----------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.time_s = 100.0
        self.rate = 1000
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        self.time_s += seconds
        if seconds:
            self.waits.append(seconds)

    def pace(self) -> Pace:
        return Pace(rate=lambda: self.rate, wait=self.wait, monotonic=lambda: self.time_s)


def test_pace_holds_the_rate_and_makes_up_for_nothing() -> None:
    clock = Clock()
    pace = clock.pace()
    for _ in range(11):
        pace(500)
    assert clock.time_s == pytest.approx(105)
    clock.time_s += 0.2  # hashing took so long
    pace(500)
    assert clock.time_s == pytest.approx(105.5)
    clock.time_s += 3600  # the machine slept
    for _ in range(3):
        pace(500)
    assert clock.time_s == pytest.approx(3705.5 + 1.0)


def test_pace_looks_at_a_new_rate_within_a_second() -> None:
    clock = Clock()

    def wait(seconds: float) -> None:
        clock.wait(seconds)
        if clock.time_s > 110 and clock.rate:
            clock.rate = 1_000_000

    pace = Pace(rate=lambda: clock.rate, wait=wait, monotonic=lambda: clock.time_s)
    pace(1_000_000)
    pace(0)
    assert max(clock.waits) <= 1.0
    assert 110 < clock.time_s < 113
    clock.rate = 0
    clock.waits.clear()
    pace(1 << 40)
    pace(1)
    assert clock.waits == []


class Reading:
    """A clock of which the minute after the start is over at once, and that sees a folder being read."""

    def __init__(self, bench: Bench) -> None:
        self.begun = threading.Event()
        self._bench = bench
        self._looks = iter([0.0])

    def going_on(self) -> bool:
        return lease.is_leased(self._bench.folder.current)

    def __call__(self) -> float:
        if self.going_on():
            self.begun.set()
        return next(self._looks, 61.0)


def test_it_stops_in_the_middle_of_a_large_file(scene: Scene) -> None:
    scene.bench().publish(model=bytes(3 << 20))
    reading = Reading(scene.bench())
    scene.time += WEEK
    scrubber = scene.scrubber(rate_bytes=1, monotonic=reading)  # a piece takes twelve days
    scrubber.start()
    assert reading.begun.wait(30)
    scrubber.stop()
    assert "scrub" not in [thread.name for thread in threading.enumerate()]
    assert not reading.going_on()
    assert scene.log.events == []
    assert not (scene.root / "scrub.json").exists()


def test_what_is_turned_off_gives_up_and_what_is_turned_on_begins(scene: Scene) -> None:
    scene.bench().publish(model=bytes(3 << 20))
    reading, told = Reading(scene.bench()), threading.Event()
    scene.while_telling = told.set
    scene.time += WEEK
    scrubber = scene.scrubber(every_s=0, monotonic=reading)
    scrubber.start()
    try:
        scrubber.configure(every_s=DAY_S, rate_bytes=1)
        assert reading.begun.wait(30)
        scrubber.configure(every_s=0, rate_bytes=1)
        until(lambda: not reading.going_on(), what="it went on reading")
        assert scene.log.events == []
        flip(scene.bench().folder.current / "config.cfg")
        scrubber.configure(every_s=DAY_S, rate_bytes=0)
        assert told.wait(30)
    finally:
        scrubber.stop()


@pytest.mark.skipif(shutil.which("ionice") is None, reason="ionice is not installed")
def test_its_thread_reads_when_the_disk_is_idle() -> None:
    found: list[str] = []

    def look() -> None:
        if read_when_idle():
            mine = str(threading.get_native_id())
            done = subprocess.run(["ionice", "-p", mine], capture_output=True, text=True, check=True)
            found.append(done.stdout.strip())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    own = subprocess.run(["ionice", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    assert found == ["idle"]
    assert own.stdout.strip() != "idle"


def test_utc_times_are_kept(scene: Scene, tmp_path: Path) -> None:
    folder = scene.bench().folder
    LastScrubs(tmp_path / "scrub.json").mark(folder, datetime(2026, 1, 1, 1, tzinfo=UTC), among=[folder])
    assert json.loads((tmp_path / "scrub.json").read_text()) == {
        str(folder.path): "2026-01-01T01:00:00+00:00"
    }
