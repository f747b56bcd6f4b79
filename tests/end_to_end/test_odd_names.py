"""Run directories can be called anything a file system allows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.judgement import sound
from tests.pipelines import build
from tests.service import Daemon, configure

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "logged"), [(b"*", "*"), (b"\xff\xfe", "\\xff\\xfe"), (b"a\nb", "a\nb")], ids=repr
)
def test_a_run_is_deployed_whatever_its_directory_is_called(tmp_path: Path, name: bytes, logged: str) -> None:
    (tmp_path / "runs").mkdir()
    more = 'schedule = [{ every = "1s" }]'
    config = configure(tmp_path, source="runs/*/model-best", deploy="models/{1}", more=more)
    with Daemon(config) as daemon:
        build("default", tmp_path / "runs" / os.fsdecode(name) / "model-best")
        (event,) = daemon.wait_for("release.published")
        assert event["rule"] == f"products/{logged}"
        # The schedule has run, and the daemon remembers when
        daemon.wait(lambda event: event.get("trigger") == "schedule")
    sound(tmp_path / "models" / os.fsdecode(name))
