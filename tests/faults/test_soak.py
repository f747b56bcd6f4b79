"""Everything at once: trainings, readers, users and random faults, as long as one likes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.report import tally
from tests.faults.soak.figures import Latency, Sample, growth, latencies, leaks
from tests.integration.serving.publishing import Publisher
from tests.pipelines import build
from tests.service import ROOT, until

if TYPE_CHECKING:
    from pathlib import Path

PROMISE = "old or new, whole, told once; nothing torn is read; nothing grows"


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(["--minutes=0.1", "--every=0.4", "--light"], id="sample"),
        pytest.param(["--minutes=10"], id="all", marks=[pytest.mark.exhaustive, pytest.mark.alone]),
    ],
)
def test_all_that_is_promised_holds_under_all_of_it(tmp_path: Path, chosen: list[str]) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.faults.soak", *chosen, "--seed=7", f"--output={tmp_path}",
        ],
        check=False, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
    assert all(told["swaps"].values())
    assert told["reads"]
    assert "<svg" in (tmp_path / "soak.svg").read_text()
    assert (tmp_path / "daemon.log").exists()
    for fault, cases in told["faults"].items():
        tally(f"in a soak: {fault}", cases, PROMISE)
    tally("in a soak: a read while it goes on", told["reads"], PROMISE)


def life(per_second: float, *, lasts_s: int = 400, pid: int = 1) -> list[Sample]:
    return [
        Sample(1000 * pid + second, pid, round((40 << 20) + per_second * second), 20, 8)
        for second in range(lasts_s)
    ]


def test_what_grows_is_a_leak_and_a_restart_is_none() -> None:
    steady = life(0) + [replace(one, rss_bytes=one.rss_bytes + (9 << 20)) for one in life(0, pid=2)]
    assert growth(steady, "rss_bytes")[0] == 0
    assert leaks(steady, steady[-1], steady[0]) == []
    growing = life(100_000, pid=1) + life(100_000, pid=2)
    per_minute, watched_s = growth(growing, "rss_bytes")
    assert per_minute == pytest.approx(6_000_000)
    assert watched_s > 500
    (found,) = leaks(growing, growing[0], growing[0])
    assert "rss_bytes grow" in found
    kept_open = replace(steady[0], descriptors=30)
    assert any("descriptors at rest" in said for said in leaks(steady, kept_open, steady[0]))


def test_the_time_from_written_to_live() -> None:
    written = [("a", 10.0), ("b", 20.0), ("never live", 21.0)]
    swaps = [("a", 10.5), ("b", 22.0), ("a", 30.0)]
    assert latencies(written, swaps, [(19.0, 21.0)]) == [
        Latency(10.0, 0.5, disturbed=False),
        Latency(20.0, 2.0, disturbed=True),
    ]


@pytest.mark.parametrize("kind", ["bytes", "load"])
def test_a_reader_tells_of_what_is_not_whole(tmp_path: Path, kind: str) -> None:
    release = Publisher(tmp_path / "deploy").publish(build("default", tmp_path / "checkpoint")).path
    report = tmp_path / "report.jsonl"
    reader = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.soak.reader", kind, tmp_path / "deploy", report, "0.01"],
        cwd=ROOT,
    )
    try:
        until(lambda: report.exists() and "reads" in report.read_text())
        assert "torn" not in report.read_text()
        victim = release / "spancat/model"
        victim.chmod(0o644)
        victim.write_bytes(bytes(victim.stat().st_size))
        until(lambda: "torn" in report.read_text())
    finally:
        reader.kill()
        reader.wait()
