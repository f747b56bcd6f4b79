"""The power goes, for real, on file systems of our own: what was told before it is there after it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.loop_device import lacks
from tests.faults.power_cut import KINDS, Cut
from tests.faults.report import tally

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PROMISE = "what is live is the old or the new release, whole; no reported swap, pin or number is lost"
CUTS: list[tuple[str, Cut]] = [
    (name, cut)
    for name, kind in KINDS.items()
    for cut in ("log lost", "log flushed", "image")
    if kind.shuts_down or cut == "image"
]
SAMPLE = [
    ("ext4", "log lost"),
    ("ext4 data=writeback", "image"),
    ("xfs", "log lost"),
    ("btrfs", "image"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the images lie: in memory, where there is one, for they stand for disks."""
    memory = Path("/dev/shm")  # noqa: S108  # a fresh folder in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as fresh:
        yield Path(fresh)


def cut_power(folder: Path, name: str, cut: str, cuts: int, seed: int) -> dict[str, Any]:
    if missing := lacks(KINDS[name].name):
        pytest.skip(missing)
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    command = ["unshare", "--mount", sys.executable, "-m", "tests.faults.power_cut"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [*command, str(folder), name, cut, str(cuts), str(seed)],
        cwd=ROOT,
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode and "Operation not permitted" in done.stderr:
        pytest.skip(f"this machine does not let root mount {name}: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _assert_nothing_is_lost(folder: Path, name: str, cut: str, cuts: int) -> None:
    seed = int.from_bytes(os.urandom(4))
    result = cut_power(folder, name, cut, cuts, seed)
    assert result["found"] == [], f"seed {seed}"
    assert result["commits"] >= cuts // 4, f"seed {seed}: the cuts fall beside the publishing"
    tally(f"power cut on {name}, {_TOLD[cut]}", result["cuts"], PROMISE)


_TOLD = {
    "log lost": "nothing more written",
    "log flushed": "its log written, no data",
    "image": "what the device holds",
}


@pytest.mark.root
@pytest.mark.parametrize(("name", "cut"), SAMPLE)
def test_power_cut(folder: Path, name: str, cut: str) -> None:
    _assert_nothing_is_lost(folder, name, cut, 10)


@pytest.mark.root
@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "cut"), CUTS)
def test_power_cut_again_and_again(folder: Path, name: str, cut: str) -> None:
    _assert_nothing_is_lost(folder, name, cut, 150)


@pytest.mark.root
@pytest.mark.parametrize("name", ["ext4"])
def test_a_publisher_that_syncs_nothing_is_found_out(folder: Path, name: str) -> None:
    result = cut_power(folder, name, "image, nothing synced", 20, 1)
    assert result["found"] != []
    assert result["cuts"] < 20
