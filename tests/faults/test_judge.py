"""The judge sees everything that it is there to see."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.release.folder import DeploymentFolder
from tests.faults.judge import generation, history, judge
from tests.integration.release.fakes import Bench

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    bench = Bench.at(tmp_path / "models")
    for _ in range(3):
        bench.publish()
    bench.history.close()
    assert judge(tmp_path / "models") == []
    return tmp_path / "models"


def _newest(deploy: Path) -> Path:
    return max((deploy / "releases").iterdir())


def _oldest(deploy: Path) -> Path:
    return min((deploy / "releases").iterdir())


def _rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o444)


def _cut_history(deploy: Path) -> None:
    path = DeploymentFolder(deploy).history_path
    path.write_bytes(path.read_bytes()[:-10])


def _drop_last_record(deploy: Path) -> None:
    path = DeploymentFolder(deploy).history_path
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _drop_a_record(deploy: Path) -> None:
    path = DeploymentFolder(deploy).history_path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))


def _lead_to_oldest(deploy: Path) -> None:
    (deploy / "current").unlink()
    (deploy / "current").symlink_to(f"releases/{_oldest(deploy).name}")


ANY_MOMENT: dict[str, Callable[[Path], object]] = {
    "current leads nowhere": lambda deploy: (deploy / "current").unlink(),
    "model.bin is missing": lambda deploy: (_newest(deploy) / "model.bin").unlink(),
    "is not what the manifest says": lambda deploy: _rewrite(
        _oldest(deploy) / "vocab/strings.json", b"the same words in every Release " * 100
    ),
    "bytes instead of": lambda deploy: _rewrite(_oldest(deploy) / "config.cfg", b""),
    "is in no manifest": lambda deploy: (_newest(deploy) / "more").touch(0o444),
    "can be written to": lambda deploy: (_newest(deploy) / "config.cfg").chmod(0o644),
    "manifest can't be read": lambda deploy: _rewrite(_oldest(deploy) / "release.json", b""),
    "the chain breaks": _drop_a_record,
}
AT_REST: dict[str, Callable[[Path], object]] = {
    "is unfinished": _cut_history,
    "has no outcome": _drop_last_record,
    "is live, the history says": _lead_to_oldest,
    "is there, and the history says otherwise": lambda deploy: shutil.copytree(
        _oldest(deploy), deploy / "releases/000009-20261122T113045Z-3f2a9c1b"
    ),
    "is gone, and the history says otherwise": lambda deploy: shutil.rmtree(_oldest(deploy)),
    "staging/x is left over": lambda deploy: (deploy / ".spancat-daemon/staging/x").mkdir(),
    ".current.1.ab is left over": lambda deploy: (deploy / ".current.1.ab").symlink_to("releases/x"),
    "is a link": lambda deploy: (deploy / "releases/000009-20261122T113045Z-3f2a9c1b").symlink_to("x"),
}


@pytest.mark.parametrize("wanted", [*ANY_MOMENT, *AT_REST])
def test_what_is_not_allowed_is_found(deploy: Path, wanted: str) -> None:
    (ANY_MOMENT | AT_REST)[wanted](deploy)
    assert any(wanted in fault for fault in judge(deploy)), judge(deploy)
    assert any(wanted in fault for fault in judge(deploy, recovered=False)) == (wanted not in AT_REST)


def test_a_release_of_two_generations_is_found(deploy: Path, tmp_path: Path) -> None:
    known = []
    for number, release in enumerate(sorted((deploy / "releases").iterdir())):
        shutil.copytree(release, tmp_path / f"{number}")
        for name in ("release.json", "model.bin"):
            (tmp_path / f"{number}" / name).unlink()
        known.append(generation(tmp_path / f"{number}"))
    assert judge(deploy, known) == []
    assert any("no generation" in fault for fault in judge(deploy, known[1:]))


def test_the_log_tells_of_each_commit_once(deploy: Path) -> None:
    told = [
        {"event": "release.overwrite", "history_sha256": line["sha256"]}
        for line in history(deploy)
        if line["kind"] == "commit"
    ]
    assert judge(deploy, log=told) == []
    assert judge(deploy, log=told[1:])
    assert judge(deploy, log=[*told, told[-1]])
