"""How many instructions the hot paths take, held to budgets: a guard that no noise of the machine disturbs.

Counted by valgrind, which needs no counters of the processor: each path is done several times, and not at
all, in a process of its own, and the difference is what it takes. The program's own instructions count, the
kernel's do not. Unlike the other measurements these are part of `make test`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from tests.benchmarks.installed import program
from tests.benchmarks.records import keep
from tests.pipelines import build
from tests.service import ROOT

if TYPE_CHECKING:
    from pathlib import Path

VALGRIND: Final = shutil.which("valgrind")
MEASURED_WITH: Final = (3, 11)
"""The Python that the budgets are of; others take up to half more or less."""

BUDGETS: Final = {
    "scan": (20, 2_480_000),
    "unchanged": (20, 3_120_000),
    "configuration": (20, 6_420_000),
    "swap": (20, 2_950_000),
    "retention": (3, 11_300_000),
    "event": (300, 89_000),
}
"""How often each path is done, and how many instructions one may take: a tenth more than it did."""
LIST: Final = 1_040_000_000
"""The same, of `spancat-daemon list` from its start to its end."""

_AS_IN_A_DAEMON: Final = """
from spancat_daemon.daemon.sparing import spare
spare()
from tests.benchmarks.hot_paths import main
main()
"""

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(VALGRIND is None, reason="valgrind is not installed"),
    pytest.mark.skipif(sys.version_info[:2] != MEASURED_WITH, reason="the budgets are of another Python"),
]


@pytest.mark.parametrize("path", BUDGETS)
def test_a_hot_path_keeps_its_budget(path: str, tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "model-best", steps=2)
    times, budget = BUDGETS[path]

    def count(times: int) -> int:
        arguments: list[str | Path] = [path, str(times), tmp_path / f"deploy-{times}", checkpoint]
        return instructions([sys.executable, "-c", _AS_IN_A_DAEMON, *arguments], tmp_path)

    taken = (count(times) - count(0)) // times
    tell(path, taken, budget)
    assert taken <= budget


def test_list_keeps_its_budget(tmp_path: Path) -> None:
    config = tmp_path / "daemon.toml"
    config.write_text('[[watch]]\nname = "products"\nsource = "runs/model-best"\ndeploy = "models"\n')
    command: list[str | Path] = [sys.executable, program(), "-c", config, "list", "products"]
    taken = instructions(command, tmp_path)
    tell("list", taken, LIST)
    assert taken <= LIST


def instructions(command: list[str | Path], folder: Path) -> int:
    """How many instructions a program takes; its hashes and addresses are the same each time."""
    assert VALGRIND is not None
    counting = [VALGRIND, "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={folder}/counts"]
    done = subprocess.run(
        [*counting, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        # What is counted is the program, not the account of which of its lines ran
        env={**os.environ, "PYTHONHASHSEED": "0", "COVERAGE_PROCESS_CONFIG": ""},
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1].replace(",", ""))


def tell(path: str, taken: int, budget: int) -> None:
    keep(f"instructions_{path}", {"taken": taken, "budget": budget})
    print(f"\n{path}: {taken:,} instructions, budget {budget:,}")  # noqa: T201  # it is there to be read
