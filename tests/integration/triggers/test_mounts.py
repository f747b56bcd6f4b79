"""Mounts are noticed at once, and what no event tells is compared at a bounded cost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.triggers import filesystem, watched
from spancat_daemon.triggers.watched import Watched
from tests.integration.triggers.watching import Watching, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

_PROGRAM = """
import json, subprocess, sys
from spancat_daemon.triggers.mounts import Mounts
mounts, place = Mounts(), sys.argv[1]
told = [mounts.changed()]
subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
told += [mounts.changed(), mounts.changed()]
subprocess.run(["umount", place], check=True)
told += [mounts.changed(), mounts.changed()]
mounts.close()
print(json.dumps([*told, mounts.changed()]))
"""


def test_each_change_of_the_table_of_mounts_is_told_once(tmp_path: Path) -> None:
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("user namespaces are not to be had here")
    done = subprocess.run(
        [*apart, sys.executable, "-c", _PROGRAM, tmp_path],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == [False, True, False, True, False, False]


def test_what_takes_long_to_compare_is_compared_seldom_and_when_a_mount_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Watched] = []
    where = watched.where

    def noting(one: Watched) -> object:
        compared.append(one)
        return where(one)

    def times() -> int:
        count, compared[:] = len(compared), []
        return count

    write_checkpoint(tmp_path / "runs/model-best")
    told = Watching(tmp_path / "canary")
    told.trigger.set_watched([Watched("a", tmp_path / "runs/model-best")])
    told.trigger.start()
    try:
        told.barrier()
        monkeypatch.setattr(filesystem, "where", noting)
        for _ in range(3):  # one checkpoint takes next to nothing
            told.trigger.check()
        assert times() == 3
        monkeypatch.setattr(filesystem, "COMPARED_AT_EACH_CALL_S", 0.0)
        monkeypatch.setattr(filesystem, "COMPARING_SHARE", 1e-9)  # as if there were very many
        for _ in range(3):
            told.trigger.check()
        assert times() == 1
        mounts = told.trigger._mounts
        assert mounts is not None
        monkeypatch.setattr(mounts, "changed", lambda: True)
        told.trigger.check()
        assert times() == 1
        monkeypatch.setattr(mounts, "changed", lambda: False)
        told.trigger.check()
        assert times() == 0
        told.clock.ahead_s += filesystem.LONGEST_UNCOMPARED_S
        told.trigger.check()
        assert times() == 1
    finally:
        told.trigger.stop()
