"""What follows a swap: who is told, whether all is well, and the way back if it is not."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.judgement import history, sound, whole
from tests.pipelines import build
from tests.service import Daemon, Event, configure, run, until

if TYPE_CHECKING:
    from pathlib import Path

TOLD = """
[[watch.after]]
command = ["sh", "-c", 'echo "$SPANCAT_RULE $SPANCAT_RELEASE $SPANCAT_TRIGGER" >> told']
"""
HEALTH = """
[watch.health]
command = ["test", "!", "-e", "{folder}/unwell"]
within = "{within}"
every = "1s"
timeout = "2s"
"""


def write(folder: Path, more: str, **keys: Any) -> Path:
    told = TOLD.replace(">> told", f">> {folder}/told")
    return configure(folder, more=told + more.format(folder=folder, within="2s"), **keys)


def replace_checkpoint(folder: Path, generation: int) -> None:
    fresh = build("default", folder / f"fresh-{generation}", generation=generation)
    checkpoint = folder / "runs/model-best"
    if checkpoint.exists():
        checkpoint.rename(folder / f"before-{generation}")
    checkpoint.parent.mkdir(exist_ok=True)
    fresh.rename(checkpoint)


def told(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "told").read_text().splitlines()]


def live(deploy: Path) -> str:
    return os.readlink(deploy / "current").removeprefix("releases/")  # noqa: PTH115  # the text


def wait_for_end(daemon: Daemon, deploy: Path) -> None:
    """Until nothing follows the last swap any more."""
    until(lambda: history(deploy)[-1]["kind"] == "concluded", what=str(daemon.events[-5:]))


def test_what_does_not_do_well_goes_back_by_itself_and_is_not_promoted_again(tmp_path: Path) -> None:
    replace_checkpoint(tmp_path, 0)
    deploy = tmp_path / "models/products"
    with Daemon(write(tmp_path, HEALTH)) as daemon:
        (first,) = daemon.wait_for("release.published")
        (passed,) = daemon.wait_for("health.passed")
        assert passed["release"] == first["release"]
        wait_for_end(daemon, deploy)
        (tmp_path / "unwell").touch()
        replace_checkpoint(tmp_path, 1)
        (second,) = daemon.wait_for("release.overwrite")
        (failed,) = daemon.wait_for("health.failed")
        assert failed["release"] == second["release"]
        (back,) = daemon.wait_for("release.rolled_back")
        assert (back["release"], back["from_release"]) == (first["release"], second["release"])
        assert back["automatic"] is True
        assert "not well within 2 s" in back["reason"]
        wait_for_end(daemon, deploy)
        assert live(deploy) == first["release"]
        # Each swap was told of, the way back too
        assert [line[1:] for line in told(tmp_path)] == [
            [first["release"], "startup"],
            [second["release"], "change"],
            [first["release"], "rollback"],
        ]
        # Its content is known now, whether or not all would be well
        (tmp_path / "unwell").unlink()
        since = len(daemon.events)
        asked = run("snapshot", "products", config=daemon.config)
        assert asked.returncode == 1
        assert "rolled back" in asked.stderr
        assert not [event for event in daemon.events[since:] if event["event"] == "release.overwrite"]
        forced = run("snapshot", "products", "--force", config=daemon.config)
        assert forced.returncode == 0, forced.stderr
        wait_for_end(daemon, deploy)
        assert live(deploy) == forced.stdout.strip()
    sound(deploy)


def test_with_nothing_to_go_back_to_it_stays_and_says_so(tmp_path: Path) -> None:
    replace_checkpoint(tmp_path, 0)
    (tmp_path / "unwell").touch()
    deploy = tmp_path / "models/products"
    with Daemon(write(tmp_path, HEALTH)) as daemon:
        (first,) = daemon.wait_for("release.published")
        (stays,) = daemon.wait_for("release.rollback_failed")
        assert stays["release"] == first["release"]
        assert "no earlier release" in stays["stays_because"]
        wait_for_end(daemon, deploy)
        assert live(deploy) == first["release"]
    sound(deploy)


@pytest.mark.parametrize("by", ["kill", "stop"])
def test_a_probation_that_was_cut_short_is_taken_up_by_the_next_start(tmp_path: Path, by: str) -> None:
    replace_checkpoint(tmp_path, 0)
    deploy = tmp_path / "models/products"
    config = write(tmp_path, HEALTH)
    with Daemon(config) as daemon:
        daemon.wait_for("health.passed")
        wait_for_end(daemon, deploy)
    write(tmp_path, HEALTH.replace("{within}", "10m"))
    (tmp_path / "unwell").touch()
    replace_checkpoint(tmp_path, 1)
    with Daemon(config) as daemon:
        (second,) = daemon.wait_for("release.overwrite")
        daemon.wait_for("notification.done")
        replace_checkpoint(tmp_path, 2)  # a newer one waits for its end
        # At the very moment of a look it says that
        until(lambda: '"probation"' in run("status", "--json", config=config).stdout)
        if by == "kill":
            daemon.kill()
    assert live(deploy) == second["release"]
    write(tmp_path, HEALTH)
    with Daemon(config) as daemon:
        (failed,) = daemon.wait_for("health.failed")
        assert failed["release"] == second["release"]
        daemon.wait_for("release.rolled_back")
        (tmp_path / "unwell").unlink()
        (third,) = daemon.wait(_a_change)
        wait_for_end(daemon, deploy)
        assert live(deploy) == third["release"]
    sound(deploy)


def _a_change(event: Event) -> bool:
    return bool(event["event"] == "release.overwrite" and event["trigger"] != "rollback")


def test_a_notification_that_fails_undoes_nothing_unless_it_is_required(tmp_path: Path) -> None:
    replace_checkpoint(tmp_path, 0)
    deploy = tmp_path / "models/products"
    optional = '[[watch.after]]\ncommand = ["sh", "-c", "echo no such server >&2; exit 3"]\n'
    config = write(tmp_path, optional)
    with Daemon(config) as daemon:
        (first,) = daemon.wait_for("release.published")
        (failed,) = daemon.wait_for("notification.failed")
        assert "no such server" in failed["reason"]
        assert failed["required"] is False
        wait_for_end(daemon, deploy)
        assert live(deploy) == first["release"]
        write(tmp_path, optional + "required = true\n")
        assert run("reload", config=config).returncode == 0
        replace_checkpoint(tmp_path, 1)
        (back,) = daemon.wait_for("release.rolled_back")
        assert "is required and failed" in back["reason"]
        wait_for_end(daemon, deploy)
        assert live(deploy) == first["release"]
    sound(deploy)


def test_without_a_daemon_a_command_waits_for_what_follows(tmp_path: Path) -> None:
    replace_checkpoint(tmp_path, 0)
    deploy = tmp_path / "models/products"
    config = write(tmp_path, HEALTH)
    first = run("snapshot", "products", config=config)
    assert first.returncode == 0, first.stderr
    assert told(tmp_path) == [["products", first.stdout.strip(), "manual"]]
    (tmp_path / "unwell").touch()
    replace_checkpoint(tmp_path, 1)
    second = run("snapshot", "products", config=config)
    assert "release.rolled_back" in second.stderr
    assert live(deploy) == first.stdout.strip()
    assert len(told(tmp_path)) == 3
    sound(deploy)


def rot(release: Path) -> None:
    """Flips a bit of a stored file, as a failing disk does."""
    model = release / "spancat/model"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    times = model.stat()
    model.chmod(0o644)
    with model.open("r+b") as file:
        file.write(data)
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_live_release_that_rots_is_found_replaced_and_published_anew(tmp_path: Path) -> None:
    replace_checkpoint(tmp_path, 0)
    deploy = tmp_path / "models/products"
    config = configure(tmp_path)
    with Daemon(config) as daemon:
        (first,) = daemon.wait_for("release.published")
        replace_checkpoint(tmp_path, 1)
        (second,) = daemon.wait_for("release.overwrite")
        replace_checkpoint(tmp_path, 2)
        (third,) = daemon.wait_for("release.overwrite", count=2)[1:]
    rot(deploy / "releases" / third["release"])
    rot(deploy / "releases" / second["release"])
    text = config.read_text().replace("[daemon]", '[daemon]\nscrub_every = "1s"\nheal = true', 1)
    config.write_text(text.replace("[[watch]]", "[[watch]]\non_change = false", 1))
    with Daemon(config) as daemon:
        found = daemon.wait_for("release.corrupted")
        assert (found[0]["release"], found[0]["live"]) == (third["release"], True)
        assert found[0]["findings"][0].startswith("model.bin: ")
        (back,) = daemon.wait_for("release.rolled_back")
        # The one before it was rotten, too
        assert (back["release"], back["from_release"]) == (first["release"], third["release"])
        assert "corrupted" in back["reason"]
        assert live(deploy) == first["release"]
        # Nothing was wrong with the checkpoint itself
        again = run("snapshot", "products", config=config)
        assert again.returncode == 0, again.stderr
        named = run("rollback", "products", second["release"], config=config)
        assert named.returncode == 1
        assert "is corrupted" in named.stderr
    shutil.rmtree(deploy / "releases" / second["release"])  # the other one has the content of what is live
    assert run("verify", "products", "--all", config=config).returncode == 0


def test_a_rotten_only_release_is_published_anew_from_its_checkpoint(tmp_path: Path) -> None:
    """Without a link to what rotted, though nothing seems to have changed."""
    replace_checkpoint(tmp_path, 0)
    deploy = tmp_path / "models/products"
    config = configure(tmp_path)
    first = run("snapshot", "products", config=config)
    assert first.returncode == 0, first.stderr
    rot(deploy / "releases" / first.stdout.strip())
    text = config.read_text().replace("[daemon]", '[daemon]\nscrub_every = "1s"\nheal = true', 1)
    config.write_text(text.replace("[[watch]]", "[[watch]]\non_change = false", 1))
    with Daemon(config) as daemon:
        daemon.wait_for("release.corrupted")
        (second,) = daemon.wait_for("release.overwrite")
        assert (second["trigger"], second["changed"]) == ("recovery", False)
        whole(deploy / "releases" / second["release"])
        assert live(deploy) == second["release"]
