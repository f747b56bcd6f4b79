"""Saves by force from several processes, beside a daemon that comes, goes and dies, and under kill -9."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import spacy

from spancat_daemon import save
from tests.faults.judge import commits, judge, live
from tests.integration.serving.forking import Child
from tests.judgement import history, sound
from tests.pipelines import build
from tests.saver import REFUSED, ROOT, start
from tests.service import Daemon, configure, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any


@contextmanager
def training(checkpoint: Path, states: list[Path]) -> Iterator[None]:
    """A checkpoint that is replaced by another state several times a second."""
    over = threading.Event()

    def replace() -> None:
        number = 0
        while not over.wait(0.2):
            fresh, old = checkpoint.with_name("fresh"), checkpoint.with_name("old")
            shutil.copytree(states[number % len(states)], fresh)
            if checkpoint.exists():
                checkpoint.rename(old)
            fresh.rename(checkpoint)
            shutil.rmtree(old, ignore_errors=True)
            number += 1

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def said_by(saver: subprocess.Popen[str]) -> list[str]:
    assert saver.stdout is not None
    with saver:
        lines = saver.stdout.read().split("\n")
    assert saver.returncode == 0
    return [line for line in lines if line not in {"", "ready"}]


def numbers_have_no_gap(deploy: Path) -> None:
    """Every number was given once, in the order in which the releases went live."""
    made = [line["release"] for line in history(deploy) if line["kind"] == "commit"]
    assert [int(name.split("-")[0]) for name in made] == list(range(1, len(made) + 1))


def test_80_saves_of_two_processes_beside_a_daemon_whose_trainer_saves_too(tmp_path: Path) -> None:
    deploy = tmp_path / "models/products"
    states = [build("default", tmp_path / f"state-{number}", generation=number) for number in range(3)]
    (tmp_path / "runs").mkdir()
    with Daemon(configure(tmp_path)) as daemon, training(tmp_path / "runs/model-best", states):
        daemon.wait_for("release.published")
        savers = [start(state, deploy, 40) for state in states[1:]]
        said = [line for saver in savers for line in said_by(saver)]
    ids = [line for line in said if not line.startswith(REFUSED)]
    assert len(said) == 80
    assert len(ids) == len(set(ids)) == 80, [line for line in said if line.startswith(REFUSED)]
    told = [line for line in commits(deploy) if line.get("saved")]
    assert {line["release"] for line in told} == set(ids)
    assert {line["rule"] for line in told} == {"products"}
    assert len(commits(deploy)) > 80  # the trainer's went live, too
    numbers_have_no_gap(deploy)
    assert judge(deploy, log=daemon.events) == []


def test_a_daemon_that_comes_goes_and_dies_while_others_save(tmp_path: Path) -> None:
    """No save is lost, and none is made twice, whoever makes it in the end."""
    deploy = tmp_path / "models/products"
    state = build("default", tmp_path / "state")
    build("default", tmp_path / "runs/model-best", generation=1)
    daemon = Daemon(configure(tmp_path))
    savers = [start(state, deploy, 30, "verify=structure") for _ in range(2)]
    chance = random.Random(1)  # noqa: S311  # moments, not secrets
    pause = threading.Event()

    def go_on() -> None:
        begun = len(commits(deploy))
        until(lambda: len(commits(deploy)) > begun + 1 or all(saver.poll() is not None for saver in savers))
        pause.wait(chance.uniform(0, 0.3))

    go_on()
    for number in range(4):
        daemon.start()
        go_on()
        daemon.kill() if number % 2 else daemon.stop()
    said = [line for saver in savers for line in said_by(saver)]
    ids = [line for line in said if not line.startswith(REFUSED)]
    assert len(ids) == 60, said
    assert sorted(ids) == sorted(line["release"] for line in commits(deploy) if line.get("saved"))
    with daemon:
        pass
    numbers_have_no_gap(deploy)
    sound(deploy)


_READER = """\
import hashlib, os, sys
from pathlib import Path
from spancat_daemon.serving.listing import hold
held = hold(Path(sys.argv[1]))
for _ in sys.stdin:
    digest = hashlib.sha256()
    for folder, directories, names in sorted(os.walk(held.directory)):
        for name in sorted(names):
            digest.update(f"{name} {hashlib.sha256(Path(folder, name).read_bytes()).hexdigest()}".encode())
    print(held.release.id, digest.hexdigest(), flush=True)
"""


class Reader:
    """A process that holds what is live when it begins, and says what it reads of it."""

    def __init__(self, deploy: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _READER, str(deploy)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self.release, self.digest = self.read()

    def read(self) -> tuple[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        release, digest = self.process.stdout.readline().split()
        return release, digest

    def end(self, number: signal.Signals | None) -> None:
        with self.process:
            if number is not None:
                self.process.send_signal(number)
        assert self.process.returncode == (0 if number is None else -number)


def test_a_release_that_is_held_outlasts_a_hundred_swaps_and_not_its_readers(tmp_path: Path) -> None:
    deploy = tmp_path / "models"
    first, second = (spacy.load(build("default", tmp_path / str(n), generation=n)) for n in range(2))

    def swap(nlp: Any) -> None:
        save(nlp, deploy, keep={"last": 1}, verify="structure")

    swap(first)
    readers = [Reader(deploy), Reader(deploy)]
    held = readers[0].release
    for number in range(100):
        swap((second, first)[number % 2])
        if number % 10 == 9:
            assert all(reader.read() == (held, reader.digest) for reader in readers)
    assert len(list((deploy / "releases").iterdir())) == 3  # with what is live, and what was before
    readers[0].end(None)
    swap(first)
    assert readers[1].read() == (held, readers[1].digest)
    readers[1].end(signal.SIGKILL)
    swap(second)
    assert not (deploy / "releases" / held).exists()
    assert len(list((deploy / "releases").iterdir())) == 2
    sound(deploy)


def test_kill_9_of_a_save_at_random_moments(tmp_path: Path) -> None:
    deploy = tmp_path / "models"
    nlp = spacy.load(build("default", tmp_path / "state"))
    began = time.monotonic()
    save(nlp, deploy, verify="structure")
    takes_s = time.monotonic() - began
    chance = random.Random(7)  # noqa: S311  # moments, not secrets
    pause = threading.Event()
    cut_short = 0

    def saving(tell: Callable[[Any], None]) -> None:
        tell("begins")
        while True:
            save(nlp, deploy, verify="structure")

    for _ in range(30):
        with Child(saving) as child:
            assert child.told() == "begins"
            pause.wait(chance.uniform(0, 3 * takes_s))
            child.end(signal.SIGKILL)
        assert judge(deploy, recovered=False) == []
        state = deploy / ".spancat-daemon"
        cut_short += any(any((state / name).iterdir()) for name in ("incoming", "staging"))
    assert cut_short
    last = save(nlp, deploy, verify="structure")
    now = live(deploy)
    assert now is not None
    assert now["id"] == last.id
    sound(deploy)
