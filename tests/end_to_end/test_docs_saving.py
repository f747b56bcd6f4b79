"""docs/examples/save_by_force.py, as a script, without a daemon and beside one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.serving.listing import releases
from tests.documented import EXAMPLES
from tests.judgement import sound
from tests.service import ROOT, Daemon, configure

if TYPE_CHECKING:
    from pathlib import Path


def run_the_script(here: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "save_by_force.py"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("beside", ["nobody", "a daemon"])
def test_the_script_saves_by_force(tmp_path: Path, beside: str) -> None:
    deploy = tmp_path / "models/products"
    if beside == "nobody":
        said = run_the_script(tmp_path)
    else:
        with Daemon(configure(tmp_path)) as daemon:
            said = run_the_script(tmp_path)
            (event,) = daemon.wait_for("release.overwrite")
            assert (event["trigger"], event["forced"], event["changed"]) == ("manual", True, False)
    assert said.splitlines()[-1] == "[(2, True), (1, False)]"
    assert [release.manifest.forced for release in releases(deploy)] == [True, True]
    sound(deploy)
    assert list((deploy / ".spancat-daemon/incoming").iterdir()) == []
