"""`kill -9` at random moments: `current` whole each time, history and disk agree, nothing left over."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from itertools import count
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.daemon.client import ControlClient
from tests.judgement import history, sound, whole
from tests.pipelines import build
from tests.service import Daemon, configure, run, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service import Event

ROUNDS = int(os.environ.get("SPANCAT_DAEMON_KILLS", "16"))


@pytest.mark.parametrize("swap", ["symlink", "exchange"])
def test_the_daemon_killed_while_it_publishes(tmp_path: Path, swap: str) -> None:
    """A new checkpoint is renamed in; the kill comes at any moment until a little after it is published.

    Each start repairs what the kill before it left, and has nothing else to do until another one comes.
    """
    checkpoint = tmp_path / "runs/model-best"
    states = [build("default", tmp_path / f"state-{number}", generation=number) for number in range(3)]
    config = configure(tmp_path, swap=swap)
    config.write_text('[log]\nfile = "daemon.log"\n' + config.read_text())
    deploy = tmp_path / "models/products"
    checkpoint.parent.mkdir()
    chance = random.Random(swap)  # noqa: S311  # moments, not secrets
    moment = threading.Event()
    control = ControlClient(tmp_path / "var/control.sock")
    takes_s = 0.0
    early = 0  # kills before it was told that another release is live
    live_told: set[str] = set()
    for number in count():
        if number >= ROUNDS and min(early, len(live_told)) >= ROUNDS // 4:
            break
        assert number < 10 * ROUNDS, f"{early} kills were early, {len(live_told)} late"
        daemon = Daemon(config).start()
        control.call("POST", "/v1/prune", {"rule": "products", "dry_run": True})  # answered after the repair
        if (deploy / "current").exists():
            sound(deploy)
        live = (deploy / "current/model.bin").read_bytes() if (deploy / "current").exists() else b""
        others = [state for state in states if (state / "spancat/model").read_bytes() != live]
        shutil.copytree(chance.choice(others), tmp_path / "fresh")
        (tmp_path / "fresh").rename(checkpoint)
        if number % 4:
            daemon.wait_for("snapshot.started")
        begun = time.monotonic()
        if number % 8 == 1:
            # What publishing takes on this machine, as busy as it is now: the kills are spread over that
            daemon.wait(is_live)
            takes_s = time.monotonic() - begun
        else:
            moment.wait(chance.uniform(0, 1.3 * takes_s))
        daemon.kill()
        # What was on one output and not yet on the other when the kill came, the next start tells again.
        told_now = {event["history_sha256"] for event in daemon.events if is_live(event)} - live_told
        live_told |= told_now
        early += not told_now
        if (deploy / "current").exists():
            whole((deploy / "current").resolve())  # also before anybody repairs anything
        shutil.rmtree(checkpoint)  # so that the next start has only the repair to do
    with Daemon(config):
        control.call("POST", "/v1/prune", {"rule": "products", "dry_run": True})  # as above
    sound(deploy)
    commits = [line["sha256"] for line in history(deploy) if line["kind"] == "commit"]
    logged = [json.loads(line) for line in (tmp_path / "daemon.log").read_text().splitlines()]
    told = [event["history_sha256"] for event in logged if "history_sha256" in event]
    assert live_told <= set(commits)
    assert told == commits


def is_live(event: Event) -> bool:
    return event["event"] in {"release.published", "release.overwrite"}


def test_a_lock_that_a_killed_daemon_held_is_free(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path)
    daemon = Daemon(config).start()
    daemon.wait_for("release.published")
    daemon.kill()
    assert run("snapshot", "products", "--force", config=config).returncode == 0
    with Daemon(config):
        until(lambda: run("status", config=config).returncode == 0, what="a stale socket is in the way")
    sound(tmp_path / "models/products")
