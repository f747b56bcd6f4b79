"""Two at once: daemons, commands, reloads, stops in the midst of it, and readers of the log that fail it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.daemon.client import ControlClient
from spancat_daemon.errors import SpancatDaemonError
from tests.faults.beside import Feeder, Mute, held, serves, stopped_loader
from tests.faults.judge import commits, judge
from tests.faults.report import tally
from tests.service import Daemon, Event, configure, idle, run, until
from tests.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOGGED = '[log]\nfile = "daemon.log"\n'


@pytest.fixture
def feeder(tmp_path: Path) -> Feeder:
    return Feeder(tmp_path)


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    return tmp_path / "models/products"


def logged(folder: Path) -> list[Event]:
    """All log files of a folder, the oldest first."""
    files = sorted(folder.glob("daemon.log*"), key=lambda path: (path.name == "daemon.log", path.name))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def told(event: Event) -> bool:
    return event["event"] in {"release.published", "release.overwrite"}


# -- daemons and commands ------------------------------------------------------------------------------------


def test_a_second_daemon_stands_back_and_takes_over(tmp_path: Path, feeder: Feeder, deploy: Path) -> None:
    config = configure(tmp_path)
    other = tmp_path / "other.toml"
    other.write_text(config.read_text().replace('"var"', '"var2"'))
    feeder.put()
    first, second = Daemon(config).start(), Daemon(other)
    first.wait(told)
    second.start()
    (refused,) = second.wait_for("snapshot.failed")
    assert f"{first.pid}" in refused["reason"]
    wanted = feeder.put()
    until(lambda: serves(deploy, wanted))
    first.kill()
    wanted = feeder.put()
    second.wait(told)
    until(lambda: serves(deploy, wanted))
    assert second.stop() == 0
    assert judge(deploy, feeder.generations, log=first.events + second.events) == []
    tally("a second daemon on the same folder", 1, "it stands back, and takes over when the first is gone")


@pytest.mark.parametrize(
    ("requests", "own_commands"), [(60, 2), pytest.param(2000, 20, marks=pytest.mark.exhaustive)]
)
def test_commands_beside_a_busy_daemon(
    tmp_path: Path, feeder: Feeder, deploy: Path, requests: int, own_commands: int
) -> None:
    config = configure(tmp_path)
    apart = tmp_path / "apart.toml"  # who does not know of the daemon finds the folder held
    apart.write_text(config.read_text().replace('"var"', '"var2"'))
    chance = random.Random(0)  # noqa: S311  # which command, not secrets
    refused = 0
    feeder.put()
    with Daemon(config) as daemon:
        daemon.wait(told)
        control = ControlClient(tmp_path / "var/control.sock")

        def ask() -> int:
            refusals = 0
            for _ in range(requests // 3):
                path = chance.choice(["rollback", "prune", "pin", "unpin", "snapshot"])
                body: dict[str, Any] = {"rule": "products"}
                if path in {"pin", "unpin"}:
                    body["release"] = chance.choice(commits(deploy))["release"]
                if path == "snapshot":
                    body["force"] = True
                try:
                    control.call("POST", f"/v1/{path}", body)
                except SpancatDaemonError:
                    refusals += 1
            return refusals

        with feeder.busy():
            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            for _ in range(own_commands):
                alone = run("snapshot", "products", "--force", config=apart)
                refused += alone.returncode == 1 and str(daemon.pid) in alone.stderr
            for thread in threads:
                thread.join()
        wanted = feeder.put()
        forced = run("snapshot", "products", "--force", config=config)
        assert forced.returncode == 0, forced.stderr
        until(lambda: serves(deploy, wanted))
    assert refused == own_commands
    assert judge(deploy, feeder.generations, log=daemon.events) == []
    tally("a manual command beside a publishing daemon", requests + own_commands, "done in turn, or refused")


# -- in the midst of a publish -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "no such rule",
        pytest.param("other terms", marks=pytest.mark.exhaustive),
        pytest.param("nothing", marks=pytest.mark.exhaustive),
        pytest.param("other folder", marks=pytest.mark.exhaustive),
        pytest.param("a mistake", marks=pytest.mark.exhaustive),
    ],
)
def test_a_reload_during_a_publish(tmp_path: Path, feeder: Feeder, deploy: Path, change: str) -> None:
    """The snapshot is with the loader, which does not move before the reload is answered."""
    config = configure(tmp_path, level="load")
    good = config.read_text()
    changed = {
        "nothing": good,
        "other terms": good + "[watch.keep]\nlast = 1\n",
        "no such rule": re.sub(r"(?s)\[\[watch\]\].*", "", good)
        + '[[watch]]\nname = "x"\nsource = "x"\ndeploy = "y"\n',
        "other folder": good.replace("models/products", "models/elsewhere"),
        "a mistake": good.replace("source", "sorce"),
    }[change]
    feeder.put()
    with Daemon(config) as daemon:
        daemon.wait(told)
        since = len(daemon.events)
        wanted = feeder.put()
        daemon.wait_for("snapshot.started", since=since)
        with stopped_loader(daemon.pid):
            config.write_text(changed)
            reloaded = run("reload", config=config)
            assert reloaded.returncode == (2 if change == "a mistake" else 0), reloaded.stderr
        if change == "other folder":
            until(lambda: serves(tmp_path / "models/elsewhere", wanted))
        config.write_text(good)
        assert run("reload", config=config).returncode == 0
        until(lambda: serves(deploy, wanted))
    told_here = [event for event in daemon.events if not told(event) or event["rule"] == "products"]
    if change == "other folder":
        assert judge(tmp_path / "models/elsewhere", feeder.generations) == []
        assert judge(deploy, feeder.generations) == []
    else:
        assert judge(deploy, feeder.generations, log=told_here) == []
    tally("a reload during a publish", 1, "answered at once; the snapshot is finished, or made again")


_STEPS = {
    # where in the publish: system call, which of its thread, on what
    "settle": ("read", 1, "runs/model-best/config.cfg"),
    "stage": ("linkat", 1, None),
    "seal": ("fsync", 1, None),
    "intent": ("fdatasync", 1, None),
    "swap": ("rename", 2, None),
    "commit": ("fdatasync", 2, None),
    "retain": ("rename", 3, None),
    "prune": ("unlinkat", 1, None),
}
_SAMPLE = {"settle", "stage", "swap", "prune"}


@pytest.mark.parametrize(
    ("step", "hold_s"),
    [
        *(
            pytest.param(step, 0.5, marks=[] if step in _SAMPLE else [pytest.mark.exhaustive])
            for step in _STEPS
        ),
        # Longer than the daemon waits for it
        *(pytest.param(step, 30, marks=[pytest.mark.exhaustive]) for step in _STEPS),
    ],
)
def test_sigterm_at_a_step_of_a_publish(
    tmp_path: Path, feeder: Feeder, deploy: Path, step: str, hold_s: float
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    call, number, path = _STEPS[step]
    config = configure(tmp_path, more="keep = { last = 1 }")
    config.write_text(LOGGED + config.read_text())
    said = tmp_path / "strace"
    with Daemon(config) as daemon:
        for times in (1, 2):  # then the next one has something to prune
            since = len(daemon.events)
            feeder.put()
            daemon.wait(told, since=since)
            until(lambda times=times: len(commits(deploy)) == times and idle(tmp_path))  # type: ignore[misc]
        on = tmp_path / path if path else None
        with held(daemon.pid, call, number, path=on, hold_s=hold_s, said=said):
            wanted = feeder.put()
            until(lambda: len(re.findall(rf"\b{call}\(", said.read_text())) >= number, what=f"no {call}")
            if hold_s < 1:
                assert daemon.stop() == 0
            else:
                daemon.signal(signal.SIGTERM)
                daemon.wait_for("daemon.stopped")  # the process itself is held by strace, too
        assert daemon.stop() == 0
    assert ("abandoned" in daemon.events[-1]) == (hold_s > 1)
    assert judge(deploy, feeder.generations, recovered=hold_s < 1) == []
    with Daemon(config):
        until(lambda: serves(deploy, wanted))
        until(lambda: idle(tmp_path))
    assert judge(deploy, feeder.generations, log=logged(tmp_path)) == []
    tally(
        "SIGTERM at a step of a publish", 1, "ends within 10 s, nothing left over; the next start publishes"
    )


def test_sigterm_with_a_stopped_loader(tmp_path: Path, feeder: Feeder, deploy: Path) -> None:
    config = configure(tmp_path, level="load")
    feeder.put()
    daemon = Daemon(config).start()
    daemon.wait_for("snapshot.started")
    with stopped_loader(daemon.pid) as loader:
        assert daemon.stop() == 0
        until(lambda: not alive(loader), what="the loader outlives the daemon")
    wanted = feeder.put()
    with Daemon(config):
        until(lambda: serves(deploy, wanted))
        until(lambda: idle(tmp_path))
    assert judge(deploy, feeder.generations) == []
    tally(
        "SIGTERM at a step of a publish", 1, "ends within 10 s, nothing left over; the next start publishes"
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stuck_loader_is_given_up_and_others_do_not_wait(
    tmp_path: Path, feeder: Feeder, deploy: Path
) -> None:
    other = '[[watch]]\nname = "other"\nsource = "runs/model-best"\ndeploy = "models/other"\n'
    other += 'verify = { level = "structure" }\n'
    config = configure(tmp_path, level=None, more='verify = { timeout = "5s" }', rules=other)
    feeder.put()
    with Daemon(config) as daemon:
        daemon.wait(told, count=2)
        since = len(daemon.events)
        wanted = feeder.put()
        daemon.wait(
            lambda event: (event["event"], event["rule"]) == ("snapshot.started", "products"), since=since
        )
        with stopped_loader(daemon.pid):
            until(lambda: serves(tmp_path / "models/other", wanted))
            until(lambda: serves(deploy, wanted))  # seen to work by another one
    of_rule = [event for event in daemon.events if event.get("rule") == "products"]
    assert judge(deploy, feeder.generations, log=of_rule) == []
    tally(
        "a verifier that is stuck", 1, "ended after its limit, another one does its work; other rules go on"
    )


@pytest.mark.parametrize(
    ("cycles", "real"), [(8, False), pytest.param(200, True, marks=pytest.mark.exhaustive)]
)
def test_restart_storms_while_a_trainer_writes(
    tmp_path: Path, feeder: Feeder, deploy: Path, cycles: int, real: bool
) -> None:
    with Trainer(tmp_path / "trainer") if real else feeder.busy() as trainer:
        source = trainer.model_best if isinstance(trainer, Trainer) else feeder.checkpoint
        config = configure(tmp_path, source=str(source))
        config.write_text(LOGGED + config.read_text())
        chance = random.Random(cycles)  # noqa: S311  # moments, not secrets
        moment = threading.Event()
        for _ in range(cycles):
            daemon = Daemon(config).start(ready=False)
            if chance.random() < 0.7:
                daemon.wait_for("daemon.ready", since=len(daemon.events))
            moment.wait(chance.uniform(0, 0.15))
            daemon.kill()
            if deploy.exists():
                assert judge(deploy, recovered=False) == []
        generations = trainer.generations() if isinstance(trainer, Trainer) else feeder.generations
    if not real:
        with Daemon(config):
            wanted = feeder.put()
            until(lambda: serves(deploy, wanted))
            until(lambda: idle(tmp_path))
    else:
        with Daemon(config):
            until(lambda: idle(tmp_path))
    assert judge(deploy, generations, log=logged(tmp_path)) == []
    tally("started and killed again while a trainer writes", cycles, "old or new; the last start publishes")


# -- those who read the log ----------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def publish(feeder: Feeder, deploy: Path, times: int) -> None:
    for _ in range(times):
        wanted = feeder.put()
        until(lambda wanted=wanted: serves(deploy, wanted))  # type: ignore[misc]


def test_the_reader_of_the_log_goes_away(
    tmp_path: Path, feeder: Feeder, deploy: Path, pipe: tuple[int, int]
) -> None:
    config = configure(tmp_path)
    config.write_text(LOGGED + config.read_text())
    reads, writes = pipe
    with Mute(config, writes) as daemon:
        os.close(writes)
        publish(feeder, deploy, 1)
        os.close(reads)
        publish(feeder, deploy, 3)
        until(lambda: daemon.status()["rules"][0]["state"] == "idle")
        assert daemon.status()["daemon"]["log_lines_dropped"] > 0
    assert judge(deploy, feeder.generations, log=logged(tmp_path)) == []
    tally("the log's pipe closed by its reader", 3, "publishing goes on; the log file has every line")


def test_nobody_reads_the_log(tmp_path: Path, feeder: Feeder, deploy: Path, pipe: tuple[int, int]) -> None:
    config = configure(tmp_path)
    config.write_text(LOGGED + config.read_text())
    reads, writes = pipe
    os.set_blocking(writes, False)
    try:
        while True:
            os.write(writes, b"-" * 4096)  # full before the daemon says its first word
    except BlockingIOError:
        os.set_blocking(writes, True)
    with Mute(config, writes) as daemon:
        publish(feeder, deploy, 4)
        until(lambda: daemon.status()["rules"][0]["state"] == "idle")
        lost = daemon.status()["daemon"]["log_lines_dropped"]
        assert lost >= len(logged(tmp_path)) > 0
        os.set_blocking(reads, False)
        drain(reads)
        publish(feeder, deploy, 1)
        until(lambda: b"log.dropped" in drain(reads), what="it is not told")
    assert judge(deploy, feeder.generations, log=logged(tmp_path)) == []
    tally("standard output blocked", 4, "publishing goes on; it is told how many lines are lost")


def drain(reads: int) -> bytes:
    """What a pipe holds now."""
    found = b""
    try:
        while piece := os.read(reads, 1 << 20):
            found += piece
    except BlockingIOError:
        pass
    return found


@pytest.mark.root
def test_the_disk_of_the_log_is_full(tmp_path: Path, feeder: Feeder, deploy: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("root: a small file system is to be mounted")
    small = tmp_path / "log"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "small", small], check=True)
    try:
        config = configure(tmp_path)
        config.write_text('[log]\nfile = "log/daemon.log"\n' + config.read_text())
        with Daemon(config) as daemon:
            (small / "ballast").write_bytes(b"-" * (24 << 10))
            publish(feeder, deploy, 8)
            assert status(tmp_path)["daemon"]["log_lines_dropped"] > 0
            (small / "ballast").unlink()
            publish(feeder, deploy, 1)
            until(lambda: idle(tmp_path))
            assert status(tmp_path)["daemon"]["log_lines_dropped"] == 0
        lines = (small / "daemon.log").read_text().splitlines()
    finally:
        subprocess.run(["umount", small], check=True)
    # Standard output had all of it; the file has what there was room for, and how much is missing
    assert judge(deploy, feeder.generations, log=daemon.events) == []
    whole = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    lost = sum(event["dropped"] for event in whole if event["event"] == "log.dropped")
    assert lost == len(daemon.events) - len([event for event in whole if event["event"] != "log.dropped"])
    tally("the log's disk full", 8, "publishing goes on; it is told how many lines are lost")


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = ControlClient(folder / "var/control.sock").call("GET", "/v1/status")
    return found


@pytest.mark.parametrize("rotations", [40, pytest.param(2000, marks=pytest.mark.exhaustive)])
def test_the_log_is_rotated_in_the_midst_of_lines(
    tmp_path: Path, feeder: Feeder, deploy: Path, rotations: int
) -> None:
    config = configure(tmp_path)
    config.write_text(LOGGED + config.read_text())
    log = tmp_path / "daemon.log"
    mistakes = "".join(f"unknown_{number} = 1\n" for number in range(200))  # a refusal is a line of 40 KB
    ends = threading.Event()
    with Daemon(config) as daemon:
        good = config.read_text()
        control = ControlClient(tmp_path / "var/control.sock")

        def say() -> None:
            while not ends.is_set():
                try:
                    control.call("POST", "/v1/reload")
                except SpancatDaemonError:
                    continue

        config.write_text(mistakes + good)
        talker = threading.Thread(target=say)
        talker.start()
        try:
            for number in range(rotations):
                log.rename(tmp_path / f"daemon.log.{number:06}")
                daemon.signal(signal.SIGHUP)
                until(log.exists)
                if number % 10 == 0:
                    publish(feeder, deploy, 1)
        finally:
            ends.set()
            talker.join()
        until(lambda: idle(tmp_path))
    assert logged(tmp_path) == daemon.events  # each line once, in order, and whole
    assert judge(deploy, feeder.generations, log=daemon.events) == []
    tally("the log rotated while lines are written", rotations, "each line is whole, and in one of the files")
