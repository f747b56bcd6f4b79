"""The daemon as its users meet it: started, fed with checkpoints, asked, reloaded, stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.judgement import history, sound, whole
from tests.pipelines import build
from tests.service import ROOT, Daemon, Event, command, configure, run, until

OVERWRITE = {
    *("timestamp", "level", "event", "rule", "release", "previous_release", "trigger", "forced", "changed"),
    *("component", "model_sha256", "previous_model_sha256", "content_sha256", "previous_content_sha256"),
    *("bytes", "bytes_written", "labels_added", "labels_removed", "metrics", "source"),
    *("verified", "gates"),
    *("settle_s", "stage_s", "verify_s", "swap_s", "total_s", "history_seq", "history_sha256"),
}


def replace(checkpoint: Path, generation: int) -> None:
    """What `spacy train` does to model-best: rmtree, then copytree, file after file."""
    fresh = build("default", checkpoint.parent / f"next-{generation}", generation=generation)
    shutil.rmtree(checkpoint, ignore_errors=True)
    shutil.copytree(fresh, checkpoint)
    shutil.rmtree(fresh)


def published(event: Event) -> bool:
    return event["event"] in {"release.published", "release.overwrite"}


@pytest.fixture(params=["symlink", "exchange"])
def swap(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_checkpoint_that_is_there_goes_live_at_start_and_the_next_overwrites_it(
    tmp_path: Path, swap: str
) -> None:
    checkpoint = build("default", tmp_path / "runs/model-best")
    with Daemon(configure(tmp_path, swap=swap)) as daemon:
        (first,) = daemon.wait_for("release.published")
        assert (first["trigger"], first["previous_release"]) == ("startup", None)
        replace(checkpoint, 1)
        (second,) = daemon.wait_for("release.overwrite")
    deploy = tmp_path / "models/products"
    live = sound(deploy)
    assert set(second) == OVERWRITE
    assert second["previous_release"] == first["release"]
    assert (second["trigger"], second["forced"], second["changed"]) == ("change", False, True)
    assert second["model_sha256"] == live["model_sha256"] != second["previous_model_sha256"]
    commit = history(deploy)[second["history_seq"] - 1]
    assert (commit["kind"], commit["sha256"]) == ("commit", second["history_sha256"])
    assert 0 < second["bytes_written"] < second["bytes"]
    assert (deploy / "current").is_symlink() == (swap == "symlink")
    assert [event["event"] for event in daemon.events].count("release.overwrite") == 1
    assert "checkpoint.vanished" not in [event["event"] for event in daemon.events]
    assert daemon.events[-1]["event"] == "daemon.stopped"


def test_commands_work_with_and_without_the_daemon(tmp_path: Path, swap: str) -> None:
    checkpoint = build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path, swap=swap, on_change=False)
    deploy = tmp_path / "models/products"

    first = run("snapshot", "products", config=config)
    assert first.returncode == 0, first.stderr
    replace(checkpoint, 1)
    with Daemon(config) as daemon:
        daemon.wait(published)
        second = sound(deploy)["id"]
        rolled_back = run("rollback", "products", config=config)
        assert (rolled_back.returncode, rolled_back.stdout) == (0, first.stdout), rolled_back.stderr
        (overwrite,) = daemon.wait(lambda event: event.get("trigger") == "rollback" and published(event))
        assert overwrite["previous_release"] == second
        # What was rolled back isn't promoted again, not even when asked, unless by force
        refused = run("snapshot", "products", config=config)
        assert refused.returncode == 1
        assert "rolled back" in refused.stderr
        forced = run("snapshot", "products", "--force", config=config)
        assert forced.returncode == 0, forced.stderr
        daemon.wait(lambda event: event.get("trigger") == "manual" and published(event))
        status = json.loads(run("status", "--json", config=config).stdout)
        assert status["daemon"]["pid"] == daemon.pid
        assert status["rules"][0]["live"] == forced.stdout.strip()
        assert run("pin", "products", "1", config=config).returncode == 0
    again = run("snapshot", "products", "--force", config=config)
    assert again.returncode == 0, again.stderr
    listed = json.loads(run("list", "products", "--json", config=config).stdout)
    # The second release has the content of the two forced ones, of which the newest stands for all
    assert [(release["sequence"], release["live"]) for release in listed] == [
        (4, True),
        (3, False),
        (1, False),
    ]
    assert listed[0]["changed"] is False
    assert listed[0]["content_sha256"] == listed[1]["content_sha256"]
    assert listed[2]["pinned"] is True
    assert sound(deploy)["id"] == again.stdout.strip()
    assert run("history", "products", "--verify", config=config).returncode == 0
    verified = run("verify", "products", "--all", config=config, timeout_s=120)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_second_daemon_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path)
    other = tmp_path / "other.toml"
    other.write_text(config.read_text().replace('"var"', '"var2"'))
    with Daemon(config) as first:
        first.wait(published)
        with Daemon(other) as second:
            (failed,) = second.wait_for("snapshot.failed")
        assert str(first.pid) in failed["reason"]
    sound(tmp_path / "models/products")


def test_a_second_run_of_the_same_configuration_leaves_the_first_ones_log_alone(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path)
    config.write_text('[log]\nfile = "daemon.log"\n' + config.read_text())
    with Daemon(config) as first:
        first.wait(published)
        second = run("run", config=config)
        assert second.returncode == 1, second.stderr
        assert f"process {first.pid}" in second.stderr
    logged = [json.loads(line) for line in (tmp_path / "daemon.log").read_text().splitlines()]
    assert logged == first.events


def test_a_reload_takes_over_new_rules_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best")
    build("custom_key", tmp_path / "runs/other")
    config = configure(tmp_path)
    good = config.read_text()
    with Daemon(config) as daemon:
        daemon.wait(published)
        config.write_text(good.replace("source =", "sorce ="))
        refused = run("reload", config=config)
        assert refused.returncode == 2
        assert "daemon.toml:" in refused.stderr
        assert "did you mean 'source'" in refused.stderr
        (told,) = daemon.wait_for("daemon.reload_refused")
        assert "\n" not in told["reason"]
        assert all(problem.startswith(str(config)) for problem in told["problems"])
        config.write_text(
            good + '[[watch]]\nname = "other"\nsource = "runs/other"\ndeploy = "models/other"\n'
        )
        accepted = run("reload", config=config)
        assert accepted.returncode == 0, accepted.stderr
        daemon.wait(lambda event: published(event) and event["rule"] == "other")
        replace(tmp_path / "runs/model-best", 1)
        daemon.wait(lambda event: event["event"] == "release.overwrite" and event["rule"] == "products")
    sound(tmp_path / "models/products")
    sound(tmp_path / "models/other")


def test_runs_that_a_glob_matches_come_and_go_while_it_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    config = configure(tmp_path, source="runs/*/model-best", deploy="models/{1}")
    config.write_text(config.read_text().replace("[daemon]", '[daemon]\nreconcile_every = "2s"'))
    with Daemon(config) as daemon:
        build("default", tmp_path / "runs/a/model-best")
        daemon.wait(lambda event: published(event) and event["rule"] == "products/a")
        build("default", tmp_path / "runs/b/model-best", generation=1)
        daemon.wait(lambda event: published(event) and event["rule"] == "products/b")
        shutil.rmtree(tmp_path / "runs/a")
        daemon.wait(
            lambda event: (
                event["event"] in {"checkpoint.vanished", "watch.ended"} and event["rule"] == "products/a"
            )
        )
        replace(tmp_path / "runs/b/model-best", 2)
        daemon.wait(lambda event: event["event"] == "release.overwrite" and event["rule"] == "products/b")
        assert run("rollback", "products/b", config=config).returncode == 0
        assert run("list", "products/a", config=config).returncode == 0
        build("default", tmp_path / "runs/a/model-best", generation=2)
        daemon.wait(lambda event: event["event"] == "release.overwrite" and event["rule"] == "products/a")
    sound(tmp_path / "models/a")
    sound(tmp_path / "models/b")


def test_a_match_that_its_trainer_replaces_is_not_let_go(tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "runs/a/model-best")
    config = configure(tmp_path, source="runs/*/model-best", deploy="models/{1}")
    with Daemon(config) as daemon:
        daemon.wait(published)
        for generation in (1, 2, 0):
            since = len(daemon.events)
            shutil.rmtree(checkpoint)
            (tmp_path / "runs/b").mkdir()  # an event of the glob itself, while the checkpoint is away
            until(lambda: json.loads(run("status", "--json", config=config).stdout)["daemon"] is not None)
            build("default", checkpoint, generation=generation)
            daemon.wait_for("release.overwrite", since=since)
            (tmp_path / "runs/b").rmdir()
    assert "watch.ended" not in [event["event"] for event in daemon.events]


def test_schedules_run_by_force_and_log_that_nothing_changed(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path, more='schedule = [{ every = "1s", force = true }]', on_change=False)
    with Daemon(config) as daemon:
        daemon.wait_for("release.overwrite", count=2)
    overwrites = [event for event in daemon.events if event["event"] == "release.overwrite"]
    assert all((event["trigger"], event["forced"]) == ("schedule", True) for event in overwrites)
    assert not any(event["changed"] for event in overwrites)
    sound(tmp_path / "models/products")


def test_a_schedule_that_fell_due_while_no_daemon_ran_is_made_up_for(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path, more='schedule = [{ cron = "0 3 * * *", force = true }]')
    with Daemon(config) as daemon:
        daemon.wait(published)
    runs = tmp_path / "var/schedules.json"
    last = json.loads(runs.read_text())
    runs.write_text(json.dumps(dict.fromkeys(last, "2026-01-01T00:00:00+00:00")))
    with Daemon(config) as daemon:
        (missed,) = daemon.wait_for("schedule.missed")
        (made_up,) = daemon.wait_for("release.overwrite")
    assert missed["scheduled_for"] == "2026-01-01T03:00:00+00:00"
    assert (made_up["trigger"], made_up["forced"]) == ("schedule", True)
    with Daemon(config) as daemon:
        daemon.wait_for("daemon.ready")
        until(
            lambda: json.loads(run("status", "--json", config=config).stdout)["rules"][0]["state"] == "idle"
        )
    assert not [
        event for event in daemon.events if event["event"] in {"schedule.missed", "release.overwrite"}
    ]


def test_a_log_file_gets_every_event_and_is_reopened_on_sighup(tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path)
    config.write_text('[log]\nfile = "daemon.log"\n' + config.read_text())
    log = tmp_path / "daemon.log"
    with Daemon(config) as daemon:
        daemon.wait(published)
        log.rename(tmp_path / "daemon.log.1")
        daemon.signal(signal.SIGHUP)
        until(log.exists)
        replace(checkpoint, 1)
        daemon.wait_for("release.overwrite")
    logged = [
        json.loads(line)
        for path in (tmp_path / "daemon.log.1", log)
        for line in path.read_text().splitlines()
    ]
    assert logged == daemon.events


def test_a_swap_that_was_not_logged_before_a_crash_is_logged_after_it_and_only_once(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path)
    config.write_text('[log]\nfile = "daemon.log"\n' + config.read_text())
    with Daemon(config) as daemon:
        (event,) = daemon.wait(published)
    # As if the process had ended between the commit and the log line, and between the line and its mark
    announced = tmp_path / "models/products/.spancat-daemon/announced"
    announced.unlink()
    with Daemon(config) as daemon:
        daemon.wait(lambda event: event["event"] == "daemon.ready")
        until(announced.exists)
    assert not [event for event in daemon.events if published(event)]
    announced.unlink()
    log = tmp_path / "daemon.log"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if event["history_sha256"] not in line))
    with Daemon(config) as daemon:
        (again,) = daemon.wait(published)
    assert {**again, "timestamp": ""} == {**event, "timestamp": ""}
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert len([line for line in logged if published(line)]) == 1


def test_a_checkpoint_that_stays_torn_is_reported_and_never_published(tmp_path: Path) -> None:
    old = build("default", tmp_path / "old")
    new = build("default", tmp_path / "new", generation=1)
    checkpoint = tmp_path / "runs/model-best"
    shutil.copytree(old, checkpoint)
    with Daemon(configure(tmp_path)) as daemon:
        (first,) = daemon.wait(published)
        # A trainer that writes in place was killed before it came to the vocabulary
        for path in ("tokenizer", "meta.json", "config.cfg", "tok2vec/model"):
            (checkpoint / path).write_bytes((new / path).read_bytes())
        (torn,) = daemon.wait_for("checkpoint.torn")
        assert torn["rule"] == "products"
        assert torn["source"] == str(checkpoint)
        # The next whole save is deployed
        replace(checkpoint, 1)
        (second,) = daemon.wait_for("release.overwrite")
    assert [event["release"] for event in daemon.events if published(event)] == [
        first["release"],
        second["release"],
    ]
    sound(tmp_path / "models/products")


def test_a_deployment_folder_can_be_read_by_everybody_and_written_by_nobody(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path)
    assert run("snapshot", "products", config=config).returncode == 0
    live = (tmp_path / "models/products/current").resolve()
    whole(live)
    for folder, _, names in os.walk(live):
        assert Path(folder).stat().st_mode & 0o777 == 0o755
        for name in names:
            assert Path(folder, name).stat().st_mode & 0o777 == 0o444
    assert (live / "model.bin").samefile(live / "spancat/model")


def test_a_checkpoint_that_is_gone_is_said_to_be_and_what_is_live_stays(tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path)
    with Daemon(config) as daemon:
        daemon.wait(published)
        shutil.rmtree(checkpoint)
        (gone,) = daemon.wait_for("checkpoint.vanished")
        assert json.loads(run("status", "--json", config=config).stdout)["rules"][0]["state"] == "absent"
        assert gone["source"] == str(checkpoint)
        sound(tmp_path / "models/products")
        build("default", checkpoint, generation=1)
        daemon.wait_for("release.overwrite")


def test_a_stop_answers_whoever_waits_for_a_snapshot(tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "runs/model-best")
    os.utime(checkpoint / "tokenizer")  # newer than what comes after it: torn for as long as nobody writes
    config = configure(tmp_path)
    with Daemon(config) as daemon:
        with subprocess.Popen(
            command("-c", config, "snapshot", "products"),
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as waiting:
            until(
                lambda: json.loads(run("status", "--json", config=config).stdout)["rules"][0]["waiting"] == 1
            )
            assert daemon.stop() == 0
            _, told = waiting.communicate(timeout=120)
        assert waiting.returncode == 1
        assert "the daemon stops" in told
