"""Somebody clears away, under the running daemon, what it holds."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.release.folder import DeploymentFolder, FolderBusy
from tests.judgement import sound
from tests.pipelines import build
from tests.service import Daemon, configure, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def replace_by_a_link(deploy: Path) -> None:
    shutil.copytree(deploy, deploy.parent / "copy", symlinks=True)
    deploy.rename(deploy.parent / "old")
    deploy.symlink_to("copy")


@pytest.mark.parametrize("swap", ["symlink", "exchange"])
@pytest.mark.parametrize(
    ("clear", "said"),
    [
        (shutil.rmtree, True),
        (lambda deploy: deploy.rename(deploy.parent / "old"), True),
        (replace_by_a_link, True),
        (lambda deploy: (deploy / ".spancat-daemon/lock").unlink(), True),
        (lambda deploy: shutil.rmtree(deploy / ".spancat-daemon/staging"), False),
    ],
    ids=["deleted", "moved", "replaced", "unlocked", "no staging"],
)
def test_a_folder_is_held_anew(tmp_path: Path, swap: str, clear: Callable[[Path], None], said: bool) -> None:
    build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path, swap=swap)
    deploy = tmp_path / "models/products"
    with Daemon(config) as daemon:
        daemon.wait_for("release.published")
        assert run("snapshot", "products", config=config).returncode == 0  # after it nothing is under way
        clear(deploy)
        asked = run("snapshot", "products", "--force", config=config)
        assert asked.returncode == 0, asked.stderr
        # One daemon per folder: this is the one that it deploys to now
        with pytest.raises(FolderBusy, match=str(daemon.pid)), DeploymentFolder(deploy).lock("another"):
            pass
        assert sound(deploy)["id"] == asked.stdout.strip()
        told = [event for event in daemon.events if event["event"] == "release.recovered"]
        assert bool(told) is said
