"""What goes wrong between the kernel, watchdog and us, made to happen for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from watchdog.observers.inotify_c import inotify_rm_watch

from spancat_daemon.triggers import filesystem
from spancat_daemon.triggers.filesystem import Watched
from tests.integration.triggers.watching import descriptors_in_use, wait_for, watching, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from watchdog.observers.inotify_c import WatchDescriptor

    from spancat_daemon.triggers.directories import Directories
    from tests.integration.triggers.watching import Watching

ROOT = Path(__file__).parents[3]


@pytest.fixture
def best(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "one" / "model-best"
    write_checkpoint(path)
    return path


def reader_of(told: Watching) -> Directories:
    directories = told.trigger._directories
    assert directories is not None
    return directories


class Holding:
    """Holds the reader's thread inside `on_dirty` until released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def __call__(self, _key: str) -> None:
        if threading.current_thread().name == "file-events":
            self.entered.set()
            self.release.wait(30)


@pytest.fixture
def holding() -> Iterator[Holding]:
    held = Holding()
    yield held
    held.release.set()


def test_an_overflow_is_said_and_everything_is_dirty(best: Path, tmp_path: Path, holding: Holding) -> None:
    other = tmp_path / "runs" / "two" / "model-best"
    write_checkpoint(other)
    third = tmp_path / "runs" / "three" / "model-best"
    write_checkpoint(third)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    with watching(tmp_path, Watched("one", best), Watched("two", other), Watched("three", third)) as told:
        told.before_dirty = holding
        (best / "config.cfg").write_bytes(b"2")
        assert holding.entered.wait(120)
        for number in range(limit // 2 + 100):  # equal neighbours in the queue would be merged
            os.utime(best / "config.cfg", (number, number))
            os.utime(best / "meta.json", (number, number))
        # These events are lost, and with them the directory that would have to be watched.
        (other / "new").mkdir()
        (third / "config.cfg").write_bytes(b"2")
        told.dirty.clear()
        holding.release.set()
        told.wait_told("watch.overflowed")
        wait_for(lambda: {"two", "three"} <= set(told.dirty), "dirty of those whose events were lost")
        assert told.told("watch.overflowed")[0].fields["rules"] == 3
        told.dirtied_by(partial((other / "new" / "file").write_bytes, b""), at_least={"two"})


def test_what_a_callback_raises_does_not_end_the_watching(
    best: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with watching(tmp_path, Watched("one", best)) as told:

        def fail(_argument: object) -> None:
            raise RuntimeError("a fault of the service")

        told.before_dirty = fail
        told.trigger._tell_event = fail
        (best / "config.cfg").write_bytes(b"2")
        (best / "new").mkdir()
        told.trigger.set_watched([Watched("one", best), Watched("two", best)])
        told.barrier()
        told.before_dirty = lambda _key: None
        told.dirtied_by(partial((best / "new" / "file").write_bytes, b"2"), at_least={"one", "two"})
    assert "on_dirty failed" in caplog.text
    assert "on_event failed" in caplog.text


def test_a_fault_of_our_own_does_not_end_the_reader(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        reader = reader_of(told)
        dispatched = threading.Event()

        def fail(*_arguments: object) -> None:
            dispatched.set()
            raise KeyError("a fault of ours")

        with monkeypatch.context() as broken:
            broken.setattr(reader, "_dispatch", fail)
            (best / "config.cfg").write_bytes(b"2")
            assert dispatched.wait(120)
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"3"), at_least={"one"})
        assert reader_of(told) is reader


def test_a_dead_reader_is_found_and_replaced(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        descriptors = len(descriptors_in_use())
        for number in range(1, 4):
            dead = reader_of(told)
            dead._reader.stop()
            dead.thread.join(120)
            told.dirty.clear()
            told.clock.ahead_s += 1000  # past the delay between two restarts
            told.trigger.check()
            assert told.dirty["one"] > 0  # what happened meanwhile is unknown
            assert (
                told.wait_told("watch.degraded", number).fields["reason"] == "the reader of file events died"
            )
            told.wait_told("watch.restored", number)
            assert reader_of(told) is not dead
            told.dirtied_by(partial((best / "config.cfg").write_bytes, b"%d" % number), at_least={"one"})
        assert len(descriptors_in_use()) == descriptors


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_that_died_reading_leaves_no_descriptors(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors = descriptors_in_use()
    with watching(tmp_path, Watched("one", best)) as told:
        reader = reader_of(told)

        def fail() -> bool:
            raise OSError(5, "read failed")

        monkeypatch.setattr(reader._reader, "_check_inotify_fd", fail)
        (best / "config.cfg").write_bytes(b"2")  # lets the read under way return
        reader.thread.join(120)
        assert not reader.alive
        told.trigger.check()
        assert reader_of(told) is not reader
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"3"), at_least={"one"})
    assert descriptors_in_use() == descriptors


def test_a_hanging_reader_is_found_by_the_canary(best: Path, tmp_path: Path, holding: Holding) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        hanging = reader_of(told)
        told.before_dirty = holding
        (best / "config.cfg").write_bytes(b"2")
        assert holding.entered.wait(120)
        told.trigger.touch_canary()
        told.trigger.check()
        assert reader_of(told) is hanging
        told.clock.ahead_s += filesystem.CANARY_PATIENCE_S + 1
        assert told.trigger.canary_age_s() > filesystem.CANARY_PATIENCE_S
        told.trigger.check()
        assert reader_of(told) is not hanging
        assert told.wait_told("watch.degraded").fields["reason"] == "the reader of file events hangs"
        told.before_dirty = lambda _key: None
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"3"), at_least={"one"})
        assert told.trigger.canary_age_s() < filesystem.CANARY_PATIENCE_S
        holding.release.set()
        hanging.thread.join(120)


def test_restarts_wait_longer_each_time(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        waits = []
        for _ in range(5):
            reader_of(told)._reader.stop()
            reader_of(told).thread.join(120)
            dead, waited = reader_of(told), 0
            while reader_of(told) is dead:
                told.trigger.check()
                told.clock.ahead_s += 1
                waited += 1
            waits.append(waited)
    assert waits == sorted(waits)
    assert waits[-1] > waits[0] + 2


def test_a_dead_keeper_is_replaced(best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        keeper = told.trigger._keeper
        assert keeper is not None
        with monkeypatch.context() as broken:
            broken.setattr(told.trigger, "_keeper", None)
            told.trigger._wake.set()
            keeper.join(120)
        assert not keeper.is_alive()
        told.trigger.check()
        told.dirtied_by(partial((best / "new").mkdir), at_least={"one"})
        told.dirtied_by(partial((best / "new" / "file").write_bytes, b""), at_least={"one"})


def test_watches_that_the_kernel_dropped_are_made_anew(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        reader = reader_of(told)
        for wd in list(reader._by_wd):  # as if the notice of each end had been lost
            reader._reader._watch_for_wd[cast("WatchDescriptor", wd)].callbacks = {}
            inotify_rm_watch(reader.descriptor, cast("WatchDescriptor", wd))
        told.trigger.check()
        assert not told.told("watch.degraded")  # their ends can be on their way
        told.barrier()
        told.trigger.check()
        assert "fewer watches" in told.wait_told("watch.degraded").fields["reason"]
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"3"), at_least={"one"})


def test_the_canary_proves_reader_and_keeper(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        told.clock.ahead_s += 100
        assert told.trigger.canary_age_s() >= 100
        told.barrier()
        assert told.trigger.canary_age_s() < 20
        (tmp_path / "state" / "canary").unlink()
        told.clock.ahead_s += 100
        told.barrier()
        assert told.trigger.canary_age_s() < 20
        assert told.trigger._directories is not None
        assert told.watches == len(best.parts) + 2 + 1


def test_a_check_finds_a_move_that_no_event_told_of(best: Path, tmp_path: Path) -> None:
    with watching(tmp_path, Watched("one", best)) as told:
        reader, deaf = reader_of(told), threading.Event()
        hear = reader._dispatch
        reader._dispatch = lambda *_event: deaf.set()  # type: ignore[method-assign]
        (tmp_path / "runs").rename(tmp_path / "gone")
        write_checkpoint(best)
        assert deaf.wait(120)
        reader._dispatch = hear  # type: ignore[method-assign]
        told.dirty.clear()
        told.trigger.check()
        assert told.dirty["one"] == 1
        told.dirtied_by(partial((best / "vocab/lookups.bin").write_bytes, b"3"), at_least={"one"})


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user who is not root, as whom the test runs."""
    root, user = Path(tempfile.mkdtemp()), os.geteuid()
    (root / "state").mkdir()
    try:
        if user == 0:
            for path in (root, root / "state"):
                os.chown(path, 65534, 65534)
            os.seteuid(65534)
        yield root
    finally:
        os.seteuid(user)
        for path in root.rglob("*"):
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(root)


def test_an_unreadable_directory_is_said_and_polled(
    unprivileged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "FALLBACK_POLL_S", 0.02)
    best = unprivileged / "runs" / "model-best"
    write_checkpoint(best)
    secret = best / "spancat"
    secret.chmod(0)
    with watching(unprivileged, Watched("one", best)) as told:
        degraded = told.told("watch.degraded")[0]
        assert degraded.fields["path"] == str(secret)
        assert degraded.fields["reason"] == "not readable"
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"3"), at_least={"one"})
        secret.chmod(0o755)
        told.wait_told("watch.restored")  # at once: the change of its mode is an event
        told.dirtied_by(partial((secret / "model").write_bytes, b"3"), at_least={"one"})


def test_what_hurts_is_not_well_because_its_trainer_takes_it_away(
    unprivileged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "FALLBACK_POLL_S", 0.02)
    best, fresh = unprivileged / "runs" / "model-best", unprivileged / "fresh"
    write_checkpoint(best)
    (best / "spancat").chmod(0)
    with watching(unprivileged, Watched("one", best)) as told:
        told.dirtied_by(partial(best.rename, unprivileged / "old"), at_least={"one"})
        told.trigger.check()
        assert not told.told("watch.restored")
        write_checkpoint(fresh)
        told.dirtied_by(partial(fresh.rename, best), at_least={"one"})
        told.wait_told("watch.restored")
        assert len(told.told("watch.degraded")) == 1


def test_ancestors_that_can_only_be_passed_through_are_no_fault(unprivileged: Path) -> None:
    best = unprivileged / "home" / "runs" / "model-best"
    write_checkpoint(best)
    (unprivileged / "home").chmod(0o311)
    with watching(unprivileged, Watched("one", best)) as told:
        assert not told.told("watch.degraded")
        told.dirtied_by(partial((best / "config.cfg").write_bytes, b"3"), at_least={"one"})
        assert told.watches == 1 + len(best.parts) + 2 - 1
        (unprivileged / "home").rename(unprivileged / "elsewhere")  # nobody tells
        told.trigger.check()
        told.wait_told("watch.lost")


def in_a_namespace(script: str, tmp_path: Path, *, mount: bool = False) -> dict[str, Any]:
    """Runs a script as root of a user namespace of its own, whose limits are its own too."""
    unshare = ["unshare", "--user", "--map-root-user", *(["--mount"] if mount else [])]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("user namespaces are not to be had here")
    done = subprocess.run(
        [*unshare, sys.executable, "-W", "error", "-c", script, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


LIMITED = """
import json, sys
from functools import partial
from pathlib import Path
from spancat_daemon.triggers import filesystem
from spancat_daemon.triggers.filesystem import Watched
from tests.integration.triggers.watching import watching, wait_for, write_checkpoint

filesystem.FALLBACK_POLL_S = 0.02
tmp_path = Path(sys.argv[1])
paths = {name: tmp_path / "runs" / name / "model-best" for name in ("first", "second")}
for path in paths.values():
    write_checkpoint(path)
limit = Path("/proc/sys/user/LIMIT")
limit.write_text("LOW")
watched = [Watched(name, path) for name, path in paths.items()]
with watching(tmp_path, *watched) as told:
    directories = told.trigger._directories
    assert directories is None or directories._canary is not None
    low = [(e.event, e.key, dict(e.fields)) for e in told.events]
    for name, path in paths.items():  # also where no watch was to be had
        for file in ("config.cfg", "vocab/lookups.bin"):
            told.barrier()
            told.dirty.clear()
            (path / file).write_bytes(b"2")
            wait_for(lambda: told.dirty[name] > 0, f"dirty {name} {file}")
    told.trigger.check()
    still = len(told.told("watch.restored"))
    limit.write_text("100000")
    told.clock.ahead_s += 1000
    told.trigger.check()
    high = [(e.event, e.key, dict(e.fields)) for e in told.told("watch.restored")]
    wait_for(lambda: told.trigger._poller._thread is None, "the end of polling")
    told.barrier()
    for name, path in paths.items():
        told.dirtied_by(partial((path / "spancat/model").write_bytes, b"3"), at_least={name})
    watches = told.watches
print(json.dumps({"low": low, "still": still, "high": high, "watches": watches}))
"""


def test_at_the_limit_of_watches_it_says_so_polls_and_recovers(tmp_path: Path) -> None:
    depth = len(tmp_path.parts)
    low = 1 + depth + 2 + 3 + 2  # the canary, the way, the first checkpoint, and not all of the second
    script = LIMITED.replace("LIMIT", "max_inotify_watches").replace("LOW", str(low))
    result = in_a_namespace(script, tmp_path)
    degraded = [entry for entry in result["low"] if entry[0] == "watch.degraded"]
    assert degraded
    for _event, key, fields in degraded:
        assert key in {"first", "second"}
        assert fields["reason"] == "the limit of inotify watches is reached"
        assert "fs.inotify.max_user_watches" in fields["hint"]
    assert result["still"] == 0
    assert {key for _event, key, _fields in result["high"]} == {key for _event, key, _fields in degraded}
    assert result["watches"] == 1 + depth + 1 + 2 * (1 + 3)


def test_without_an_inotify_instance_everything_is_polled(tmp_path: Path) -> None:
    script = LIMITED.replace("LIMIT", "max_inotify_instances").replace("LOW", "0")
    result = in_a_namespace(script, tmp_path)
    degraded = [entry for entry in result["low"] if entry[0] == "watch.degraded"]
    assert [key for _event, key, _fields in degraded] == [None, "first", "second"]
    assert "fs.inotify.max_user_instances" in degraded[0][2]["hint"]
    assert {key for _event, key, _fields in result["high"]} == {None, "first", "second"}


MOUNTED = """
import json, subprocess, sys
from functools import partial
from pathlib import Path
from spancat_daemon.triggers.filesystem import Watched
from tests.integration.triggers.watching import watching, write_checkpoint

tmp_path = Path(sys.argv[1])
best = tmp_path / "runs" / "one" / "model-best"
write_checkpoint(best)
with watching(tmp_path, Watched("one", best)) as told:
    seen = []
    runs = str(tmp_path / "runs")
    for command in (["mount", "-t", "tmpfs", "none", runs], ["umount", runs]):
        told.barrier()
        told.dirty.clear()
        subprocess.run(command, check=True)
        told.trigger.check()
        told.barrier()
        seen.append(told.dirty["one"] > 0)
        write_checkpoint(best)
        told.dirtied_by(partial((best / "spancat/model").write_bytes, b"3"), at_least={"one"})
print(json.dumps({"seen": seen, "events": [e.event for e in told.events]}))
"""


def test_a_file_system_mounted_over_it_and_unmounted(tmp_path: Path) -> None:
    result = in_a_namespace(MOUNTED, tmp_path, mount=True)
    assert result["seen"] == [True, True]
    assert result["events"].count("watch.lost") >= 1
