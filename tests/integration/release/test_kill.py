"""``kill -9`` at any moment: ``current`` is whole, history and disk agree, nothing is left over.

`tests/faults/test_system_calls.py` lets the kernel do it, and more than killing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.release.publisher import SCENARIOS

ROOT = Path(__file__).parents[3]


def results(*arguments: str | Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-B", "-m", "tests.integration.release.publisher", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
