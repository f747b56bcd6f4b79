"""What a hundred rules cost while nothing happens."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.pipelines import build
from tests.service import Daemon, configure, until

RULES = 100
WINDOW_S = 12.0
QUIET_S = 3.0
"""Longer than the daemon waits until it gives back what a burst of work took."""


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
        # Beside other work the last snapshot, and what follows it, ends long after its event
        until(lambda: _used_s(daemon.pid, QUIET_S) < 0.02, timeout_s=120, what="it does not come to rest")
        woken = _wakeups(daemon.pid)
        used_s = _used_s(daemon.pid, WINDOW_S)
        woken = _wakeups(daemon.pid) - woken
        resident = _resident_bytes(daemon.pid)
        libraries = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert resident < 50_000_000
    assert used_s < 0.002 * WINDOW_S
    assert woken < 3 * WINDOW_S
    for name in ("spacy", "thinc", "numpy", "srsly"):
        assert f"/{name}/" not in libraries


def _used_s(pid: int, window_s: float) -> float:
    """Processor time that is used while so much time passes."""
    before_s = _cpu_s(pid)
    threading.Event().wait(window_s)  # the measured time itself
    return _cpu_s(pid) - before_s


def _wakeups(pid: int) -> int:
    """How often threads came to sleep of their own will, and so to wake."""
    lines = [
        line
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    ]
    return sum(int(line.split()[1]) for line in lines)


def _cpu_s(pid: int) -> float:
    """User and system time of all threads, also of those that ended; see clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")
