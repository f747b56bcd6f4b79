"""The daemon on spools and signals, as a training leaves them."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.judgement import sound
from tests.pipelines import build
from tests.service import Daemon, Event, configure, run, until
from tests.spooling import Spool, digests, signal

if TYPE_CHECKING:
    from pathlib import Path

BAD = {"snapshot.rejected", "snapshot.failed", "checkpoint.torn", "watch.degraded", "watch.signal_ignored"}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return build("default", tmp_path / "pipeline")


def made_live(event: Event) -> bool:
    return event["event"] in {"release.published", "release.overwrite"}


def step_of(release: Path) -> int:
    step: int = json.loads((release / "meta.json").read_bytes())["spancat_daemon"]["step"]
    return step


def bad(daemon: Daemon) -> list[Event]:
    return [event for event in daemon.events if event["event"] in BAD or event["level"] == "error"]


def renamed_in(pipeline: Path, checkpoint: Path, note: str) -> None:
    """A checkpoint of another content, whole at once."""
    fresh = checkpoint.with_name("fresh")
    shutil.copytree(pipeline, fresh)
    (fresh / "note").write_text(note)
    shutil.rmtree(checkpoint, ignore_errors=True)
    fresh.rename(checkpoint)


@pytest.mark.parametrize("poll", ["0s", "100ms"])
def test_each_newest_entry_goes_live_as_its_training_says(tmp_path: Path, pipeline: Path, poll: str) -> None:
    config = configure(tmp_path, source="run/spool", writer="spool", poll=poll, more="[watch.keep]")
    spool, deploy = Spool(tmp_path / "run/spool"), tmp_path / "models/products"
    entry = spool.put(pipeline, 50)
    with Daemon(config) as daemon:
        (event,) = daemon.wait(made_live)
        assert event["trigger"] == "startup"
        # The second holds what is live, and after it a training is begun anew.
        for step, releases in ((100, 2), (100, 2), (0, 3), (100, 4)):
            entry = spool.put(pipeline, step)
            event = daemon.wait(made_live, count=releases)[-1]
            assert event["trigger"] == "signal"
            assert digests(deploy / "releases" / event["release"]) == spool.written[-1]
        assert bad(daemon) == []
    assert not list(deploy.rglob("entry.json"))
    assert sound(deploy)["source"] == str(entry)
    assert {path.name for path in spool.path.iterdir()} == {"new", "tmp"}


def test_what_was_put_there_while_no_daemon_ran_goes_live_at_its_start(
    tmp_path: Path, pipeline: Path
) -> None:
    spool = Spool(tmp_path / "runs/a/spool")
    spool.put(pipeline, 1)
    spool.put(pipeline, 2)
    config = configure(
        tmp_path, source="runs/*/spool", writer="spool", deploy="models/{1}", contents="component"
    )
    with Daemon(config) as daemon:
        daemon.wait_for("release.published")
        other = Spool(tmp_path / "runs/b/spool")  # a run that begins while it runs
        other.put(pipeline, 3)
        (event,) = daemon.wait(lambda event: made_live(event) and event["rule"] == "products/b")
        assert event["trigger"] == "signal"
        assert bad(daemon) == []
    assert [step_of(tmp_path / "models" / name / "current") for name in "ab"] == [2, 3]
    assert run("snapshot", "products/b", config=config).returncode == 0
    spool.put(pipeline, 4)
    assert run("snapshot", "products/a", config=config).returncode == 0
    assert step_of(tmp_path / "models/a/current") == 4


def test_a_storm_of_entries_that_go_again_at_once(tmp_path: Path, pipeline: Path) -> None:
    """Each is taken away as soon as the next is there, in whatever state of being copied it is."""
    config = configure(tmp_path, source="run/spool", writer="spool", more="[watch.keep]")
    spool, deploy = Spool(tmp_path / "run/spool", keep=1), tmp_path / "models/products"
    with Daemon(config) as daemon:
        last = 0
        while last < 80 or (last < 5000 and len(list((deploy / "releases").iterdir())) < 4):
            last += 1
            spool.put(pipeline, last)
        daemon.wait(lambda event: made_live(event) and step_of(deploy / "current") == last)
        assert bad(daemon) == []
    sound(deploy)
    releases = [digests(release) for release in (deploy / "releases").iterdir()]
    assert len(releases) > 3
    assert all(release in spool.written for release in releases)


def test_a_broken_entry_is_refused_and_the_next_one_mends_it(tmp_path: Path, pipeline: Path) -> None:
    config = configure(tmp_path, source="run/spool", writer="spool", gate={"min_step": 400})
    config.write_text(config.read_text().replace('gate = {"min_step": 400}', "gate = { min_step = 400 }"))
    spool, deploy = Spool(tmp_path / "run/spool"), tmp_path / "models/products"
    with Daemon(config) as daemon:
        spool.put(pipeline, 399)
        (event,) = daemon.wait_for("snapshot.rejected")
        assert "400" in event["reason"]
        spool.put(pipeline, 400)
        daemon.wait_for("release.published")
        entry = spool.put(
            pipeline, 500, before=lambda begun: (begun / "spancat/model").write_bytes(bytes(100))
        )
        (event,) = daemon.wait(lambda event: "bytes and not the" in event.get("reason", ""))
        assert event["path"] == f"{entry}/spancat/model"
        entry = spool.put(pipeline, 500, before=lambda begun: os.utime(begun, (1, 1)))
        (event,) = daemon.wait_for("release.overwrite")
        assert [event["event"] for event in daemon.events].count("snapshot.rejected") == 2
    assert digests(deploy / "current") == spool.written[-1]
    sound(deploy)


@pytest.mark.parametrize("poll", ["0s", "100ms"])
def test_a_trainers_word_is_why_it_is_looked_at(tmp_path: Path, pipeline: Path, poll: str) -> None:
    """Stopped meanwhile, the daemon finds the change and the word together, and the word counts."""
    config = configure(tmp_path, poll=poll)
    runs = tmp_path / "runs"
    runs.mkdir()
    renamed_in(pipeline, runs / "model-best", "1")
    signal(runs, "model-best")  # of a training long ago
    with Daemon(config) as daemon:
        daemon.wait_for("release.published")
        renamed_in(pipeline, runs / "model-best", "2")
        (event,) = daemon.wait_for("release.overwrite")
        assert event["trigger"] == "change"
        daemon.rests()  # else a look that the last change asked for may be the one that finds the next
        with daemon.frozen():
            renamed_in(pipeline, runs / "model-best", "3")
            signal(runs, "model-last", "model-best", step=400)
        event = daemon.wait_for("release.overwrite", count=2)[-1]
        assert event["trigger"] == "signal"
        daemon.rests()
        with daemon.frozen():
            renamed_in(pipeline, runs / "model-best", "4")
            signal(runs, "model-last")
        event = daemon.wait_for("release.overwrite", count=3)[-1]
        assert event["trigger"] == "change"
        assert bad(daemon) == []
    sound(tmp_path / "models/products")


def test_a_word_is_no_proof(tmp_path: Path, pipeline: Path) -> None:
    config = configure(tmp_path)
    best = tmp_path / "runs/model-best"
    with Daemon(config) as daemon:
        renamed_in(pipeline, best, "1")
        (first,) = daemon.wait(made_live)
        os.utime(best / "config.cfg")  # as a save that began, and no more
        signal(best.parent, "model-best")
        until(lambda: '"state": "unsettled"' in run("status", "--json", config=config).stdout)
    assert sound(tmp_path / "models/products")["id"] == first["release"]


def test_what_is_no_word_is_said_once_and_nothing_waits_for_it(tmp_path: Path, pipeline: Path) -> None:
    config = configure(tmp_path)
    best = tmp_path / "runs/model-best"
    best.parent.mkdir()
    word = best.with_name("written.json")
    with Daemon(config) as daemon:
        os.mkfifo(word)
        (event,) = daemon.wait_for("watch.signal_ignored")
        assert (event["rule"], event["path"], event["level"]) == ("products", str(word), "warning")
        for number in range(3):
            renamed_in(pipeline, best, str(number))
            daemon.wait(made_live, count=number + 1)
        word.unlink()
        word.symlink_to("/dev/zero")
        daemon.wait(lambda event: "symbolic link" in event.get("reason", ""))
        huge = best.with_name("huge")
        huge.touch()
        os.truncate(huge, 1 << 30)
        huge.replace(word)
        daemon.wait(lambda event: "has more than" in event.get("reason", ""))
        renamed_in(pipeline, best, "last")
        daemon.wait(made_live, count=4)
        told = [event for event in daemon.events if event["event"] == "watch.signal_ignored"]
        assert len(told) == 3
    sound(tmp_path / "models/products")
