"""``kill -9`` at any moment: ``current`` is whole, history and disk agree, nothing is left over.

With ``SPANCAT_DAEMON_ALL_KILL_POINTS=1`` the kills by strace cover every system call instead of a sample.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from spancat_daemon.release.folder import DeploymentFolder
from tests.integration.release.fakes import judge
from tests.integration.release.publisher import SCENARIOS, assert_never_absent, start

ROOT = Path(__file__).parents[3]
TRACED = (
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,"
    "fsync,fdatasync,write,pwrite64,ftruncate"
)


def publisher(
    *arguments: str | Path, wrapper: tuple[str | Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*wrapper, sys.executable, "-B", "-m", "tests.integration.release.publisher", *arguments]
    environ = dict(os.environ)
    if wrapper:  # the system calls of a coverage being saved are none of ours
        environ = {name: value for name, value in environ.items() if not name.startswith("COV")}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def results(*arguments: str | Path) -> list[dict[str, Any]]:
    done = publisher(*arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kinds", ["symlink", "exchange", "symlink,exchange"])
def test_killed_at_random_moments(tmp_path: Path, kinds: str) -> None:
    seed = int.from_bytes(os.urandom(4))
    (result,) = results("storm", tmp_path / "models", kinds, "70", str(seed))
    assert result["commits"] > 0
    # the kills did fall into publishing, not beside it
    assert result["actions"].get("emptied", 0) > 0
    assert {"committed", "aborted", "discarded"} & result["actions"].keys()


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_before_every_system_call_and_so_is_each_recovery(tmp_path: Path, name: str) -> None:
    (result,) = results("every-point", tmp_path, name)
    assert result["points"] >= 9
    assert result["recoveries"] > result["points"]
    if "prune" not in name:
        assert result["kinds"]["abort"] > 0
        assert result["kinds"]["commit"] > 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("action", "kind"),
    [("publish", "symlink"), ("publish", "exchange"), ("rollback", "exchange"), ("prune", "symlink")],
)
def test_killed_by_the_kernel_at_system_calls(tmp_path: Path, action: str, kind: str) -> None:
    def prepared(name: str) -> Path:
        path = tmp_path / name
        assert publisher("do", path, "publish", kind, "3").returncode == 0
        return path

    log = tmp_path / "calls"
    strace = ("strace", "-f", "-qq", "-e", f"trace={TRACED}", "-o", log)
    done = publisher("do", prepared("whole"), action, kind, "1", wrapper=strace)
    if done.returncode != 0 and "ptrace" in done.stderr:
        pytest.skip("this machine does not let strace trace")
    assert done.returncode == 0, done.stderr
    calls = Counter(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
    points = [(call, n) for call, count in calls.items() for n in range(1, count + 1)]
    assert {"fsync", "fdatasync", "write"} <= calls.keys()
    if not os.environ.get("SPANCAT_DAEMON_ALL_KILL_POINTS"):
        points = random.sample(points, 6)  # other ones at each run

    path = prepared("killed")
    for call, n in points:
        inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={n}")
        publisher("do", path, action, kind, "1", wrapper=("strace", "-f", "-qq", *inject, "-o", log))
        folder = DeploymentFolder(path)
        assert "killed by SIGKILL" in log.read_text(), f"{call} {n} did not happen"
        assert_never_absent(folder)
        start(path)[1].close()
        judge(folder)
        # So that the next one has something to roll back to and to prune
        assert publisher("do", path, "publish", kind, "3").returncode == 0
