"""The commands while the daemon holds the folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.pipelines import build
from tests.service import Daemon, run

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
[daemon]
min_free = "1MiB"
[[watch]]
name = "products"
source = "runs/model-best"
deploy = "models"
"""


def test_acting_commands_go_through_the_daemon(tmp_path: Path) -> None:
    config = tmp_path / "daemon.toml"
    config.write_text(CONFIG)
    build("default", tmp_path / "runs" / "model-best")
    with Daemon(config) as daemon:
        daemon.wait_for("release.published")

        status = run("status", "--json", config=config)
        assert status.returncode == 0, status.stderr
        told = json.loads(status.stdout)
        assert told["daemon"]["pid"] == daemon.pid
        first = told["rules"][0]["live"]
        readable = run("status", config=config)
        assert f"pid {daemon.pid}" in readable.stdout
        assert first in readable.stdout

        unchanged = run("snapshot", "products", config=config)
        assert (unchanged.returncode, unchanged.stdout.strip()) == (0, first)
        assert "unchanged" in unchanged.stderr

        forced = run("snapshot", "products", "--force", config=config)
        second = forced.stdout.strip()
        assert forced.returncode == 0, forced.stderr
        assert second != first

        rolled_back = run("rollback", "products", config=config)
        assert (rolled_back.returncode, rolled_back.stdout.strip()) == (0, first), rolled_back.stderr
        assert run("rollback", "products", "nonsense", config=config).returncode == 2
        assert run("rollback", "products", first, config=config).returncode == 2

        pinned = run("pin", "products", "2", config=config)
        assert (pinned.returncode, pinned.stdout.strip()) == (0, second), pinned.stderr
        listed = json.loads(run("list", "products", "--json", config=config).stdout)
        assert [entry["pinned"] for entry in listed] == [True, False]
        assert run("unpin", "products", second, config=config).returncode == 0
        pruned = run("prune", "products", "--dry-run", "--json", config=config)
        assert [verdict["id"] for verdict in json.loads(pruned.stdout)] == [second, first]

        daemon.wait(lambda event: event["event"] == "release.overwrite" and event["trigger"] == "rollback")
        assert run("history", "products", "--verify", config=config).returncode == 0

        assert run("reload", config=config).returncode == 0
        config.write_text(CONFIG + "typo = 1\n")
        refused = run("reload", config=config)
        assert refused.returncode == 2
        assert "typo" in refused.stderr
        assert "goes on with the configuration that it has" in refused.stderr
        config.write_text(CONFIG)
    assert run("reload", config=config).returncode == 3
