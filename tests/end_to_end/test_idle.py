"""What a hundred rules cost while nothing happens."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.pipelines import build
from tests.service import Daemon, configure

RULES = 100
WINDOW_S = 12.0


@pytest.mark.alone
def test_a_hundred_idle_rules_are_small_and_quiet(tmp_path: Path) -> None:
    first = build("default", tmp_path / "runs/model-best")
    rules = ""
    for number in range(RULES - 1):
        folder = tmp_path / f"runs/{number}"
        folder.mkdir()
        (folder / "model-best").symlink_to(first)  # a checkpoint each, without 100 copies on disk
        rules += (
            f'[[watch]]\nname = "r{number}"\nsource = "runs/{number}/model-best"\n'
            f'deploy = "models/{number}"\nschedule = [{{ every = "1h" }}]\n'
            'verify = { level = "structure" }\n'
        )
    # What is measured is the daemon, not the account of which of its lines ran
    uncounted = {"COVERAGE_PROCESS_CONFIG": ""}
    with Daemon(configure(tmp_path, rules=rules), environ=uncounted) as daemon:
        daemon.wait_for("release.published", count=RULES)
        before_s = _cpu_s(daemon.pid)
        threading.Event().wait(WINDOW_S)  # the measured time itself
        used_s = _cpu_s(daemon.pid) - before_s
        resident = _resident_bytes(daemon.pid)
        libraries = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert resident < 60 << 20
    assert used_s < 0.005 * WINDOW_S
    for name in ("spacy", "thinc", "numpy", "srsly"):
        assert f"/{name}/" not in libraries


def _cpu_s(pid: int) -> float:
    """User and system time of all threads, from the scheduler's own account in nanoseconds."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) / 1e9 for task in Path(f"/proc/{pid}/task").iterdir()
    )


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")
