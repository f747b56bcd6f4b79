"""Readers that resolve ``current`` once never see half a release, or two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("readers", ["naive", "leased"])
@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_six_hundred_passes_during_sixty_swaps(tmp_path: Path, kind: str, readers: str) -> None:
    command = [sys.executable, "-m", "tests.integration.release.publisher"]
    done = subprocess.run(
        [*command, "readers", tmp_path / "models", kind, "60", readers],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["passes"] >= 600
    assert result["commits"] == 61
    if readers == "leased":  # retention was at work under them
        assert result["releases"] < 20
