"""A rule with ``contents = "standalone"``, by the real daemon: whoever dies on the way leaves nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import spacy

from tests.faults.beside import children
from tests.judgement import sound
from tests.misbehaving import interpreter, misbehave
from tests.pipelines import build, predictions, texts
from tests.service import Daemon, configure, run, until

# It can write nothing, so what it ignores says that it has come so far.
_HANGS = "import signal\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)\nwhile True: signal.pause()"


def hanging(pid: int) -> list[int]:
    """The loaders of a process that hang."""
    return [child for child in children(pid) if _ignores(child)]


def _ignores(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    return bool(ignored >> (signal.SIGUSR1 - 1) & 1)


def wait_for_hanging(pid: int, *, but: int = 0) -> int:
    until(lambda: hanging(pid) not in ([], [but]), what="no loader hangs")
    (found,) = hanging(pid)
    return found


def replace(folder: Path, fresh: Path) -> None:
    """Put another checkpoint in the place of the one there, in one step each."""
    checkpoint = folder / "runs/model-best"
    if checkpoint.exists():
        checkpoint.rename(folder / f"before-{fresh.name}")
    checkpoint.parent.mkdir(exist_ok=True)
    fresh.rename(checkpoint)


def test_rule_with_standalone_releases(tmp_path: Path) -> None:
    deploy = tmp_path / "models/products"
    staging = deploy / ".spancat-daemon/staging"
    verify = f'[watch.verify]\npython = "{interpreter(tmp_path / "env")}"\n'
    replace(tmp_path, build("default", tmp_path / "first"))
    # The checkpoints that misbehave are not as spaCy writes them.
    written = {"writer": "any", "settle": "50ms"}
    config = configure(tmp_path, contents="standalone", **written, level=None, more=verify)
    with Daemon(config) as daemon:
        (first,) = daemon.wait_for("release.published")
        assert first["verified"] == "load"
        assert spacy.load(deploy / "current").component_names == ["spancat"]
        expected = predictions(tmp_path / "runs/model-best", texts())
        assert predictions(deploy / "current", texts()) == expected

        # The loader dies while it makes the model.
        replace(tmp_path, misbehave(build("default", tmp_path / "hangs", generation=1), _HANGS))
        kept = wait_for_hanging(daemon.pid)
        assert len(list(staging.iterdir())) == 1
        os.kill(kept, signal.SIGKILL)
        fresh = wait_for_hanging(daemon.pid, but=kept)  # it had answered before, so it may be to blame
        os.kill(fresh, signal.SIGKILL)
        (refused,) = daemon.wait_for("snapshot.rejected")
        assert "'spancat' could not be made standalone: the loader was ended by SIGKILL" in refused["reason"]
        assert not list(staging.iterdir())
        assert sound(deploy)["id"] == first["release"]

        # The daemon dies with it.
        replace(tmp_path, misbehave(build("default", tmp_path / "again", generation=2), _HANGS))
        last = wait_for_hanging(daemon.pid)
        daemon.kill()
        until(lambda: not Path(f"/proc/{last}").exists(), what="the loader outlives the daemon")
        assert list(staging.iterdir())
        replace(tmp_path, build("default", tmp_path / "good", generation=1))
        since = len(daemon.events)
        daemon.start()
        (second,) = daemon.wait_for("release.overwrite", since=since)
        assert not list(staging.iterdir())
        assert second["previous_release"] == first["release"]
        assert predictions(deploy / "current", texts()) == predictions(tmp_path / "runs/model-best", texts())
        assert "unchanged" in run("snapshot", "products", config=config).stderr
    assert sound(deploy)["id"] == second["release"]
