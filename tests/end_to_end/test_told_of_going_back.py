"""What commands say after a release did not do well and the one before it came back by itself."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from tests.pipelines import build
from tests.service import Daemon, configure, run

if TYPE_CHECKING:
    from pathlib import Path


def test_status_history_and_logs_say_why_it_went_back(tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "runs/model-best")
    command = ["/usr/bin/test", "!", "-e", str(tmp_path / "sick")]
    health = f'health = {{ command = {json.dumps(command)}, within = "1s", every = "1s", timeout = "1s" }}'
    config = configure(tmp_path, more=health)
    config.write_text(f'[log]\nfile = "daemon.log"\n{config.read_text()}')
    with Daemon(config) as daemon:
        first = daemon.wait_for("release.published")[0]["release"]
        daemon.wait_for("health.passed")
        (tmp_path / "sick").touch()
        shutil.rmtree(checkpoint)
        build("default", checkpoint, generation=1)
        left = daemon.wait_for("release.rolled_back")[0]["from_release"]
        status = run("status", config=config)
        (rule,) = json.loads(run("status", "--json", config=config).stdout)["rules"]
    assert f"products: went back by itself from {left}: not well within 1 s" in status.stdout
    assert rule["went_back"].startswith(f"went back by itself from {left}")
    history = run("history", "products", config=config).stdout.splitlines()
    assert first in history[1]
    assert "rollback: not well within 1 s" in history[1]
    assert " by itself — not well within 1 s" in run("logs", config=config).stdout
